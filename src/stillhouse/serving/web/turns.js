// What a person and a model write in turns: the history, how it is continued, retried and undone.

import { stream } from "./server.js";
import { sampling, settings } from "./settings.js";
import { Stoppable } from "./stoppable.js";
import { read, store } from "./storage.js";

// Abstract: a subclass has `request`.
export class Turns {
  constructor(name, { pinned, turns, form, field, stop, restore, ...buttons }, { announce, onError }) {
    this.name = name; // in storage
    this.pinned = pinned; // a text field that every request has
    this.turns = turns;
    this.form = form;
    this.field = field;
    this.restoreButton = restore;
    this.work = new Stoppable(stop, onError);
    this.announce = announce;
    this.history = []; // {by: "you", text} or {by: "model", model, text}
    this.previous = []; // the history before this one
    this.attempts = 0; // so that a retry differs, also with a fixed seed
    this.#restore();
    this.pinned.addEventListener("input", () => this.#save());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit(this.field.value.trim());
    });
    for (const [action, button] of Object.entries({ restore, ...buttons })) {
      button.addEventListener("click", () => this[action]());
    }
  }

  // Take the text of the form.
  submit(text) {
    if (text) this.add(text);
  }

  // The request that continues a history, or null where nothing can.
  /** @type {(history: {by: string, text: string}[]) => {path: string, body: object} | null} */
  request(_history) {
    throw new Error("each kind of turns has its own");
  }

  // Add a turn and generate what follows; without text, only generate.
  async add(text) {
    if (text) this.history.push({ by: "you", text });
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
    this.work.stop();
    if (this.history.at(-1)?.by === "model") this.history.pop();
    if (this.history.at(-1)?.by === "you") this.history.pop();
    this.#render();
    this.announce("Undone.");
  }

  begin() {
    this.work.stop();
    if (this.history.length) [this.history, this.previous] = [[], this.history];
    this.#render();
    this.field.focus();
  }

  restore() {
    this.work.stop();
    [this.history, this.previous] = [this.previous, this.history];
    this.#render();
  }

  // Generate a turn, in place of `old` if it is given.
  async #continue(old = null) {
    this.work.stop();
    const previous = this.history.filter((each) => each !== old);
    const request = this.request(previous);
    if (!request) return;
    const { model } = settings;
    const turn = { by: "model", model, text: "" };
    this.attempts += 1;
    const body = { ...sampling(this.attempts), ...request.body, model };
    await this.work.run(async (signal) => {
      for await (const { text: more } of stream(request.path, body, signal)) {
        if (signal.aborted) return;
        turn.text += more;
        if (!turn.text) continue;
        this.history = [...previous, turn];
        this.#render();
      }
      if (!signal.aborted) this.announce(turn.text.trim() || "The model generated no text; try again.", { quietly: true });
    }, () => this.#continue(turn.text ? turn : old));
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
    store(this.name, { memory: this.pinned.value, told: history, before: previous });
  }

  #restore() {
    const found = read(this.name);
    if (!found) return;
    const turns = (history) => (Array.isArray(history) ? history.filter(isTurn) : []);
    this.pinned.value = found.memory ?? "";
    this.history = turns(found.told);
    this.previous = turns(found.before);
    this.#render();
  }
}

const isTurn = (turn) =>
  typeof turn?.text === "string" &&
  (turn.by === "you" || (turn.by === "model" && typeof turn.model === "string"));
