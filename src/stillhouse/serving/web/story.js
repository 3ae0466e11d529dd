// A story told in turns: what you do or say, and what the model makes of it.

import { lastPart } from "./manuscript.js";
import { stream } from "./server.js";
import { sampling, settings } from "./settings.js";
import { read, store } from "./stored.js";

const KEPT = "stillhouse.story";
const READ = 6_000; // characters of the story, at most
const TOKENS = 60;
const FORMS = {
  do: (words) => `\n> You ${words}\n`,
  say: (words) => `\n> You say "${words}"\n`,
  story: (words) => (words ? `\n${words}` : ""),
};

export class Story {
  constructor(elements, { say, failed }) {
    Object.assign(this, elements); // memory, turns, form, field, stopButton, beforeButton
    this.say = say;
    this.failed = failed;
    this.told = []; // {by: "you", text} or {by: "model", model, text}
    this.before = []; // the story that was told before this one
    this.tries = 0; // so that a retry is another, from a fixed seed too
    this.#restore();
    this.memory.addEventListener("input", () => this.#keep());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.go(this.form.elements.turn.value, this.field.value.trim());
    });
  }

  // What you add, and then what follows from it. Nothing to add lets the story go on by itself.
  async go(kind, words) {
    if (words) this.told.push({ by: "you", text: FORMS[kind](words) });
    this.field.value = "";
    this.#render();
    await this.#continue();
  }

  // Another way for the last turn to have gone, which stays until the other begins to come.
  async retry() {
    const last = this.told.at(-1);
    await this.#continue(last?.by === "model" ? last : null);
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
    if (this.told.length) [this.told, this.before] = [[], this.told];
    this.#render();
    this.field.focus();
  }

  bringBack() {
    this.stop();
    [this.told, this.before] = [this.before, this.told];
    this.#render();
  }

  stop() {
    this.stopping?.abort();
    this.stopButton.hidden = true;
  }

  // What follows, in the place of the turn `old` if there is one.
  async #continue(old = null) {
    this.stop();
    const stopping = new AbortController();
    this.stopping = stopping;
    this.stopButton.hidden = false;
    const { model } = settings;
    const turn = { by: "model", model, text: "" };
    const before = this.told.filter((each) => each !== old);
    const story = lastPart(before.map(({ text }) => text).join("").trim(), READ);
    const text = before.at(-1)?.by === "you" ? `${story}\n` : story;
    const memory = this.memory.value.trim();
    this.tries += 1;
    const asked = { ...sampling(this.tries), tokens: TOKENS, stop: ["\n>"], number: 1 };
    // What is pinned stays before the story, however much of that has to be cut off.
    const body = { ...asked, model, text, ...(memory && { pinned: `${memory}\n` }) };
    try {
      for await (const { text: more } of stream("/editor/suggestions", body, stopping.signal)) {
        if (stopping.signal.aborted) return;
        turn.text += more;
        if (!turn.text) continue;
        this.told = [...before, turn];
        this.#render();
      }
      if (!stopping.signal.aborted) this.say(turn.text.trim() || "Nothing came; try again.", { aloud: true });
    } catch (error) {
      const again = () => this.#continue(turn.text ? turn : old);
      if (!stopping.signal.aborted) this.failed(error, again);
    } finally {
      if (this.stopping === stopping) this.stopButton.hidden = true;
    }
  }

  #render() {
    this.turns.replaceChildren(
      ...this.told.map(({ by, text, model }) => {
        const item = document.createElement("li");
        item.className = by;
        if (by === "model") item.dataset.model = model;
        item.textContent = text.trim();
        return item;
      }),
    );
    this.turns.lastElementChild?.scrollIntoView({ block: "nearest" });
    this.beforeButton.hidden = !this.before.length;
    this.#keep();
  }

  #keep() {
    const { told, before } = this;
    store(KEPT, { memory: this.memory.value, told, before });
  }

  #restore() {
    const found = read(KEPT);
    if (!found) return; // there is none yet
    const turns = (told) => (Array.isArray(told) ? told.filter(isTurn) : []);
    this.memory.value = found.memory ?? "";
    this.told = turns(found.told);
    this.before = turns(found.before);
    this.#render();
  }
}

const isTurn = (turn) =>
  typeof turn?.text === "string" &&
  (turn.by === "you" || (turn.by === "model" && typeof turn.model === "string"));
