// Suggestions at the caret: asked for, shown as they come, chosen with keys, clicks or taps.

import { lastPart, withLineFeeds } from "./manuscript.js";
import { stream } from "./server.js";
import { sampling, settings } from "./settings.js";

const READ = 20_000; // characters before the caret, at most; no model here takes more
const WORD = /^\s*\S+/u;
const WHOLE_WORD = /^\s*\S+(?=\s)/u;

export class Suggestions {
  // `say` tells a screen reader, `failed` shows a trouble and offers to try again.
  constructor(writer, { popover, list, controls }, { say, failed }) {
    this.writer = writer;
    this.popover = popover;
    this.list = list;
    this.controls = controls;
    this.say = say;
    this.failed = failed;
    this.anchor = null; // {start, end} of what a suggestion replaces
    this.sets = []; // {model, options: {text, isDone}, taken: of each option already, isDone}
    this.set = 0;
    this.active = 0;
    this.stopping = null;
    this.isLeaving = false;
    writer.textarea.addEventListener("keydown", (event) => this.#key(event));
    list.addEventListener("click", ({ target }) => this.#click(target));
    popover.addEventListener("pointerdown", (event) => event.preventDefault()); // keep the focus
    const actions = {
      take: () => this.take(),
      takeWord: () => this.takeWord(),
      earlier: () => this.turn(-1),
      more: () => this.turn(1),
      stop: () => this.stop(),
      close: () => this.close(),
    };
    for (const [name, act] of Object.entries(actions)) {
      controls[name].addEventListener("click", act);
    }
  }

  get isOpen() {
    return this.anchor !== null;
  }

  get options() {
    const set = this.sets[this.set];
    return set?.options.filter((option) => goesAsTaken(option, set)) ?? [];
  }

  // The option that is chosen stays so, also where one before it goes.
  get active() {
    return Math.max(0, this.options.indexOf(this.chosen));
  }

  set active(at) {
    this.chosen = this.options[at];
  }

  // What is left of an option.
  #rest(option) {
    return option?.text.slice(this.sets[this.set].taken.length) ?? "";
  }

  // Ask at the caret; what is selected would be replaced.
  open() {
    this.close();
    const { selectionStart, selectionEnd } = this.writer.textarea;
    this.anchor = { start: selectionStart, end: selectionEnd };
    this.#ask();
  }

  close() {
    this.stop();
    this.anchor = null;
    this.sets = [];
    this.popover.hidden = true;
    this.list.replaceChildren();
    this.writer.textarea.removeAttribute("aria-activedescendant");
  }

  stop() {
    this.stopping?.abort();
    this.stopping = null;
    const shown = this.sets.at(-1);
    if (shown) shown.isDone = true;
    if (this.isOpen) this.#render();
  }

  // Another set: a later one, which may have to be asked for, or an earlier one.
  turn(by) {
    const next = this.set + by;
    if (next < 0) return;
    if (next < this.sets.length) {
      this.set = next;
      this.active = 0;
      this.#render();
      this.#announce();
    } else {
      this.stop();
      this.#ask();
    }
  }

  take() {
    const rest = this.#rest(this.options[this.active]);
    if (!rest) return;
    const { start, end } = this.anchor;
    const { model } = this.sets[this.set];
    this.close();
    this.writer.insert(start, end, rest, model);
    this.say("Taken.");
  }

  // The next word of a suggestion; it and those that go the same way stay.
  takeWord() {
    const set = this.sets[this.set];
    const option = this.options[this.active];
    const isDone = set.isDone || option?.isDone;
    const word = (isDone ? WORD : WHOLE_WORD).exec(this.#rest(option))?.[0];
    if (!word) return;
    if (set.isDone) this.stop(); // a later set would be for the text as it was
    const { start, end } = this.anchor;
    this.sets = [set];
    this.set = 0;
    set.taken += word;
    this.anchor = { start: start + word.length, end: start + word.length };
    this.writer.insert(start, end, word, set.model);
    if (this.#rest(option) || !isDone) this.#render();
    else this.close();
  }

  async #ask() {
    const { model } = settings;
    const number = settings.temperature === 0 ? 1 : settings.number;
    const options = Array.from({ length: number }, () => ({ raw: "", text: "", isDone: false }));
    const set = { model, options, taken: "", isDone: false };
    this.sets.push(set);
    this.set = this.sets.length - 1;
    this.active = 0;
    const stopping = new AbortController();
    this.stopping = stopping;
    this.#render();
    const { start } = this.anchor;
    const text = lastPart(this.writer.textarea.value.slice(0, start), READ);
    const body = { model, text, number, ...sampling(this.set) };
    try {
      for await (const { sequence, text: more, reason } of stream(
        "/editor/suggestions", body, stopping.signal,
      )) {
        if (stopping.signal.aborted) return;
        options[sequence].raw += more;
        options[sequence].text = withLineFeeds(options[sequence].raw);
        options[sequence].isDone = reason !== undefined;
        this.#renderSoon();
      }
    } catch (error) {
      if (!stopping.signal.aborted) this.#fail(error, set);
      return;
    }
    if (stopping.signal.aborted) return;
    set.isDone = true;
    this.stopping = null;
    this.#render();
    this.#announce();
  }

  // Without the set that failed; the earlier ones stay.
  #fail(error, set) {
    const place = this.anchor;
    if (this.sets.length === 1) this.close();
    else {
      this.sets = this.sets.filter((each) => each !== set);
      this.turn(Math.min(0, this.sets.length - 1 - this.set));
    }
    this.failed(error, () => {
      this.writer.textarea.focus();
      if (this.isOpen) return this.turn(this.sets.length - this.set);
      this.writer.textarea.setSelectionRange(place.start, place.end);
      this.open();
    });
  }

  #announce() {
    const rests = this.options.map((option) => this.#rest(option).trim() || "nothing");
    const texts = rests.map((rest, at) => `${at + 1}: ${rest}`);
    this.say(`${texts.length} suggestions. ${texts.join(". ")}`, { aloud: true });
  }

  #renderSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (this.isOpen) this.#render();
    });
  }

  #render() {
    const set = this.sets[this.set];
    const { textarea } = this.writer;
    this.list.replaceChildren(
      ...this.options.map((option, at) => {
        const item = document.createElement("li");
        item.id = `suggestion-${at}`;
        item.role = "option";
        item.ariaSelected = String(at === this.active);
        const number = document.createElement("kbd");
        number.textContent = String(at + 1);
        const words = document.createElement("span");
        words.textContent = this.#rest(option) || (set.isDone ? "(nothing)" : "…");
        item.append(number, words);
        return item;
      }),
    );
    this.list.setAttribute("aria-busy", String(!set.isDone));
    this.controls.set.textContent = `${this.set + 1} of ${this.sets.length}`;
    this.controls.earlier.disabled = this.set === 0;
    this.controls.stop.hidden = set.isDone;
    this.popover.hidden = false;
    textarea.setAttribute("aria-activedescendant", `suggestion-${this.active}`);
    this.#place();
  }

  // Under the caret, and inside the page.
  #place() {
    const caret = this.writer.rectAt(this.anchor.start);
    const page = this.popover.offsetParent?.getBoundingClientRect();
    if (!page) return;
    const left = Math.min(caret.left - page.left, page.width - this.popover.offsetWidth);
    this.popover.style.left = `${Math.max(0, left)}px`;
    this.popover.style.top = `${caret.bottom - page.top + 6}px`;
    this.list.children[this.active]?.scrollIntoView({ block: "nearest" });
  }

  #click(target) {
    const at = [...this.list.children].indexOf(target.closest("li"));
    if (at < 0) return;
    this.active = at;
    this.take();
  }

  #move(by) {
    const count = this.options.length;
    this.active = (this.active + by + count) % count;
    this.#render();
  }

  #key(event) {
    if (event.isComposing) return;
    if (event.ctrlKey && event.code === "Space") {
      event.preventDefault();
      if (this.isOpen) this.turn(1);
      else this.open();
    } else if (this.isOpen) this.#keyWhileOpen(event);
    else this.#keyWhileClosed(event);
  }

  #keyWhileClosed(event) {
    const { key, shiftKey } = event;
    if (key === "Escape") {
      this.isLeaving = true;
      this.say("Tab now leaves the text.");
    } else if (key === "Tab" && !shiftKey && !this.isLeaving) {
      event.preventDefault();
      this.open();
    } else if (key !== "Shift") this.isLeaving = false;
  }

  #keyWhileOpen(event) {
    const { key, ctrlKey, altKey, metaKey, shiftKey } = event;
    const plain = !ctrlKey && !altKey && !metaKey;
    let act = null;
    if (key === "Tab") act = () => this.turn(shiftKey ? -1 : 1);
    else if (key === "ArrowDown" && plain) act = () => this.#move(1);
    else if (key === "ArrowUp" && plain) act = () => this.#move(-1);
    else if (key === "Enter" && plain) act = () => this.take();
    else if (key === "Escape") act = () => this.close();
    else if (key === "ArrowRight" && ctrlKey) act = () => this.takeWord();
    else if (plain && this.options[Number(key) - 1]) {
      act = () => {
        this.active = Number(key) - 1;
        this.take();
      };
    } else if (plain && ["ArrowLeft", "ArrowRight", "Home", "End"].includes(key)) this.close();
    if (act) {
      event.preventDefault();
      act();
    }
  }
}

// Whether an option begins as what was taken does; one whose words have not come yet still may.
function goesAsTaken({ text, isDone }, set) {
  return text.startsWith(set.taken) || (!isDone && !set.isDone && set.taken.startsWith(text));
}
