// A story in turns: what the player does or says, and what the model continues with.

import { lastPart } from "./manuscript.js";
import { stream } from "./server.js";
import { sampling, settings } from "./settings.js";
import { read, store } from "./storage.js";

const STORY_KEY = "stillhouse.story";
const MAX_CHARACTERS = 6_000; // of the story, in a request
const TURN_TOKENS = 60;
const FORMS = {
  do: (words) => `\n> You ${words}\n`,
  say: (words) => `\n> You say "${words}"\n`,
  story: (words) => (words ? `\n${words}` : ""),
};

export class Story {
  constructor({ memory, turns, form, field, stopButton, restoreButton }, { announce, onError }) {
    this.memory = memory;
    this.turns = turns;
    this.form = form;
    this.field = field;
    this.stopButton = stopButton;
    this.restoreButton = restoreButton;
    this.announce = announce;
    this.onError = onError;
    this.history = []; // {by: "you", text} or {by: "model", model, text}
    this.previous = []; // the history of the story before this one
    this.attempts = 0; // so that a retry differs, also with a fixed seed
    this.#restore();
    this.memory.addEventListener("input", () => this.#save());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.go(this.form.elements.turn.value, this.field.value.trim());
    });
  }

  // Add a turn and generate what follows; without words, only generate.
  async go(kind, words) {
    if (words) this.history.push({ by: "you", text: FORMS[kind](words) });
    this.field.value = "";
    this.#render();
    await this.#continue();
  }

  // Generate the last turn again; it stays until the new one has text.
  async retry() {
    const last = this.history.at(-1);
    await this.#continue(last?.by === "model" ? last : null);
  }

  // Remove the last turn and what was generated for it.
  undo() {
    this.stop();
    if (this.history.at(-1)?.by === "model") this.history.pop();
    if (this.history.at(-1)?.by === "you") this.history.pop();
    this.#render();
    this.announce("Undone.");
  }

  begin() {
    this.stop();
    if (this.history.length) [this.history, this.previous] = [[], this.history];
    this.#render();
    this.field.focus();
  }

  restore() {
    this.stop();
    [this.history, this.previous] = [this.previous, this.history];
    this.#render();
  }

  stop() {
    this.stopping?.abort();
    this.stopButton.hidden = true;
  }

  // Generate a turn, in place of `old` if it is given.
  async #continue(old = null) {
    this.stop();
    const stopping = new AbortController();
    this.stopping = stopping;
    this.stopButton.hidden = false;
    const { model } = settings;
    const turn = { by: "model", model, text: "" };
    const previous = this.history.filter((each) => each !== old);
    const story = lastPart(previous.map(({ text }) => text).join("").trim(), MAX_CHARACTERS);
    const text = previous.at(-1)?.by === "you" ? `${story}\n` : story;
    const memory = this.memory.value.trim();
    this.attempts += 1;
    const request = { ...sampling(this.attempts), max_new_tokens: TURN_TOKENS, stop: ["\n>"], num_suggestions: 1 };
    // The pinned text stays in front of the story, which is truncated to make room.
    const body = { ...request, model, text, ...(memory && { pinned: `${memory}\n` }) };
    try {
      for await (const { text: more } of stream("/editor/suggestions", body, stopping.signal)) {
        if (stopping.signal.aborted) return;
        turn.text += more;
        if (!turn.text) continue;
        this.history = [...previous, turn];
        this.#render();
      }
      if (!stopping.signal.aborted) this.announce(turn.text.trim() || "The model generated no text; try again.", { quietly: true });
    } catch (error) {
      const retry = () => this.#continue(turn.text ? turn : old);
      if (!stopping.signal.aborted) this.onError(error, retry);
    } finally {
      if (this.stopping === stopping) this.stopButton.hidden = true;
    }
  }

  #render() {
    this.turns.replaceChildren(
      ...this.history.map(({ by, text, model }) => {
        const item = document.createElement("li");
        item.className = by;
        if (by === "model") item.dataset.model = model;
        item.textContent = text.trim();
        return item;
      }),
    );
    this.turns.lastElementChild?.scrollIntoView({ block: "nearest" });
    this.restoreButton.hidden = !this.previous.length;
    this.#save();
  }

  #save() {
    const { history, previous } = this;
    store(STORY_KEY, { memory: this.memory.value, told: history, before: previous });
  }

  #restore() {
    const found = read(STORY_KEY);
    if (!found) return;
    const turns = (history) => (Array.isArray(history) ? history.filter(isTurn) : []);
    this.memory.value = found.memory ?? "";
    this.history = turns(found.told);
    this.previous = turns(found.before);
    this.#render();
  }
}

const isTurn = (turn) =>
  typeof turn?.text === "string" &&
  (turn.by === "you" || (turn.by === "model" && typeof turn.model === "string"));
