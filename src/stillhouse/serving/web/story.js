// A story told in turns: what you do or say, and what the model makes of it.

import { stream } from "./server.js";
import { sampling, settings } from "./settings.js";

const KEPT = "stillhouse.story";
const READ = 6_000; // characters of the story, at most; what is to be remembered comes before them
const TOKENS = 60;
const FORMS = {
  do: (words) => `\n> You ${words}\n`,
  say: (words) => `\n> You say "${words}"\n`,
  story: (words) => (words ? `\n${words}` : ""),
};

export class Story {
  constructor(elements, { say, failed }) {
    Object.assign(this, elements); // memory, turns, form, field, stopButton
    this.say = say;
    this.failed = failed;
    this.told = []; // {by: "you" or "model", text}
    this.tries = 0; // so that a retry is another, from a fixed seed too
    this.#restore();
    this.memory.addEventListener("input", () => this.#keep());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.go(this.form.elements.turn.value, this.field.value.trim());
    });
  }

  get text() {
    return this.told.map(({ text }) => text).join("").trim();
  }

  // What you add, and then what follows from it. Nothing to add lets the story go on by itself.
  async go(kind, words) {
    if (words) this.told.push({ by: "you", text: FORMS[kind](words) });
    this.field.value = "";
    await this.#continue();
  }

  // Another way for the last turn to have gone.
  async retry() {
    if (this.told.at(-1)?.by === "model") this.told.pop();
    await this.#continue();
  }

  // Take back the last turn, with what followed from it.
  undo() {
    this.stop();
    if (this.told.at(-1)?.by === "model") this.told.pop();
    if (this.told.at(-1)?.by === "you") this.told.pop();
    this.#render();
    this.say("Taken back.");
  }

  begin() {
    this.stop();
    this.told = [];
    this.#render();
    this.field.focus();
  }

  stop() {
    this.stopping?.abort();
    this.stopButton.hidden = true;
  }

  async #continue() {
    this.stop();
    const stopping = new AbortController();
    this.stopping = stopping;
    this.stopButton.hidden = false;
    const turn = { by: "model", text: "" };
    const before = `${this.memory.value.trim()}\n${this.text.slice(-READ)}`.trimStart();
    this.told.push(turn);
    this.#render();
    this.tries += 1;
    const asked = { ...sampling(this.tries), tokens: TOKENS, stop: ["\n>"], number: 1 };
    const text = this.told.at(-2)?.by === "you" ? `${before}\n` : before;
    try {
      const body = { ...asked, model: settings.model, text };
      for await (const { text: more } of stream("/editor/suggestions", body, stopping.signal)) {
        turn.text += more;
        this.#render();
      }
      if (!stopping.signal.aborted) this.say(turn.text.trim() || "Nothing came; try again.", { aloud: true });
    } catch (error) {
      if (!stopping.signal.aborted) this.failed(error, () => this.retry());
    } finally {
      if (!turn.text) this.told = this.told.filter((each) => each !== turn);
      if (this.stopping === stopping) this.stopButton.hidden = true;
      this.#render();
    }
  }

  #render() {
    this.turns.replaceChildren(
      ...this.told.map(({ by, text }) => {
        const item = document.createElement("li");
        item.className = by;
        item.textContent = text.trim();
        return item;
      }),
    );
    this.turns.lastElementChild?.scrollIntoView({ block: "nearest" });
    this.#keep();
  }

  #keep() {
    try {
      const { told } = this;
      localStorage.setItem(KEPT, JSON.stringify({ memory: this.memory.value, told }));
    } catch {
      this.say("This device cannot keep the story; copy it to the page and export it.");
    }
  }

  #restore() {
    try {
      const { memory, told } = JSON.parse(localStorage.getItem(KEPT));
      const isTurn = ({ by, text }) => ["you", "model"].includes(by) && typeof text === "string";
      this.memory.value = memory;
      this.told = told.filter(isTurn);
      this.#render();
    } catch {
      // There is none yet.
    }
  }
}
