// Suggestions at the caret: requested, shown as they are generated, and chosen by key, click or tap.

import { lastPart, withLineFeeds } from "./manuscript.js";
import { stream } from "./server.js";
import { sampling, settings } from "./settings.js";

const MAX_CHARACTERS = 20_000; // before the caret, in a request
const WORD = /^\s*\S+/u;
const WHOLE_WORD = /^\s*\S+(?=\s)/u;

export class Suggestions {
  // `announce` writes to the status line and screen readers, `onError` shows an error with a retry button.
  constructor(writer, { popover, list, controls }, { announce, onError }) {
    this.writer = writer;
    this.popover = popover;
    this.list = list;
    this.controls = controls;
    this.announce = announce;
    this.onError = onError;
    this.anchor = null; // {start, end} of the range that a suggestion replaces
    this.sets = []; // {model, options: {text, isDone}, taken: the prefix accepted so far, isDone}
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
    return set?.options.filter((option) => matchesTaken(option, set)) ?? [];
  }

  // The active option stays active when one before it is removed.
  get active() {
    return Math.max(0, this.options.indexOf(this.chosen));
  }

  set active(at) {
    this.chosen = this.options[at];
  }

  // What of an option is not accepted yet.
  #rest(option) {
    return option?.text.slice(this.sets[this.set].taken.length) ?? "";
  }

  // Request suggestions at the caret; they replace the selection.
  open() {
    this.close();
    const { selectionStart, selectionEnd } = this.writer.textarea;
    this.anchor = { start: selectionStart, end: selectionEnd };
    this.#request();
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

  // Show a later set, which is requested where there is none yet, or an earlier one.
  turn(by) {
    const next = this.set + by;
    if (next < 0) return;
    if (next < this.sets.length) {
      this.set = next;
      this.active = 0;
      this.#render();
      this.#announceOptions();
    } else {
      this.stop();
      this.#request();
    }
  }

  take() {
    const rest = this.#rest(this.options[this.active]);
    if (!rest) return;
    const { start, end } = this.anchor;
    const { model } = this.sets[this.set];
    this.close();
    this.writer.insert(start, end, rest, model);
    this.announce("Taken.");
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

  async #request() {
    const { model } = settings;
    const num_suggestions = settings.temperature === 0 ? 1 : settings.num_suggestions;
    const options = Array.from({ length: num_suggestions }, () => ({ raw: "", text: "", isDone: false }));
    const set = { model, options, taken: "", isDone: false };
    this.sets.push(set);
    this.set = this.sets.length - 1;
    this.active = 0;
    const stopping = new AbortController();
    this.stopping = stopping;
    this.#render();
    const { start } = this.anchor;
    const text = lastPart(this.writer.textarea.value.slice(0, start), MAX_CHARACTERS);
    const body = { model, text, num_suggestions, ...sampling(this.set) };
    try {
      for await (const { index, text: more, finish_reason } of stream(
        "/editor/suggestions", body, stopping.signal,
      )) {
        if (stopping.signal.aborted) return;
        options[index].raw += more;
        options[index].text = withLineFeeds(options[index].raw);
        options[index].isDone = finish_reason !== undefined;
        this.#renderSoon();
      }
    } catch (error) {
      if (!stopping.signal.aborted) this.#showError(error, set);
      return;
    }
    if (stopping.signal.aborted) return;
    set.isDone = true;
    this.stopping = null;
    this.#render();
    this.#announceOptions();
  }

  // Drop the failed set and keep the earlier ones.
  #showError(error, set) {
    const place = this.anchor;
    if (this.sets.length === 1) this.close();
    else {
      this.sets = this.sets.filter((each) => each !== set);
      this.turn(Math.min(0, this.sets.length - 1 - this.set));
    }
    this.onError(error, () => {
      this.writer.textarea.focus();
      if (this.isOpen) return this.turn(this.sets.length - this.set);
      this.writer.textarea.setSelectionRange(place.start, place.end);
      this.open();
    });
  }

  #announceOptions() {
    const rests = this.options.map((option) => this.#rest(option).trim() || "no text");
    const texts = rests.map((rest, at) => `${at + 1}: ${rest}`);
    this.announce(`${texts.length} suggestions. ${texts.join(". ")}`, { quietly: true });
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
        words.textContent = this.#rest(option) || (set.isDone ? "(no text)" : "…");
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
      this.announce("Tab now leaves the text.");
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

// Whether an option starts with the accepted prefix, or may do so once more of it is generated.
function matchesTaken({ text, isDone }, set) {
  return text.startsWith(set.taken) || (!isDone && !set.isDone && set.taken.startsWith(text));
}
