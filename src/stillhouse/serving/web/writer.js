// The text editor: a textarea, over a copy of its text with generated text marked.

import { Manuscript, normalized, withLineFeeds } from "./manuscript.js";

const UNDOING = new Set(["historyUndo", "historyRedo"]);
const PASTING = new Set(["insertFromPaste", "insertFromDrop"]);

export class Writer {
  // `changed(model)` is called after every change, with the model that wrote the new text, or null.
  constructor(textarea, behind, changed) {
    this.textarea = textarea;
    this.behind = behind;
    this.manuscript = new Manuscript();
    this.isReplacing = false; // its input events are ignored; the whole is marked once
    this.changed = changed;
    this.copied = null; // {text, marks}, so that moved text keeps its marks
    textarea.addEventListener("input", (event) => this.#input(event));
    for (const leaving of ["copy", "cut", "dragstart"]) {
      document.addEventListener(leaving, ({ target }) => {
        this.copied = target === textarea ? this.#selected() : selectionElsewhere(target);
      });
    }
  }

  get caret() {
    return this.textarea.selectionEnd;
  }

  // Start with this text; there is nothing to undo.
  open(given) {
    const { text, marks } = normalized(given);
    this.textarea.value = text;
    this.manuscript = new Manuscript(text, marks);
    this.#render();
  }

  // Replace a range by generated text, as one step to undo.
  insert(start, end, text, model) {
    const { length } = this.manuscript.text;
    this.#replaceRange(start, end, text);
    const { value } = this.textarea;
    const newEnd = end + value.length - length;
    this.manuscript.insert(value, { start, oldEnd: end, newEnd }, model);
    this.#render();
    this.changed(model);
  }

  // Replace the whole text, as one step to undo.
  replace(given) {
    const { text, marks } = normalized(given);
    const { length } = this.manuscript.text;
    this.#replaceRange(0, length, text);
    this.manuscript.set(text, marks);
    this.#render();
    this.changed(null);
  }

  // Replace a range. The browser reports each line break as an input event of its own.
  #replaceRange(start, end, text) {
    this.textarea.focus();
    this.textarea.setSelectionRange(start, end);
    this.isReplacing = true;
    // Deprecated, and still the only change by a page that the browser can undo.
    const done = document.execCommand(text ? "insertText" : "delete", false, withLineFeeds(text));
    if (!done) this.textarea.setRangeText(withLineFeeds(text), start, end, "end");
    this.isReplacing = false;
  }

  // The position on screen of an offset in the text.
  rectAt(offset) {
    const walker = document.createTreeWalker(this.behind, NodeFilter.SHOW_TEXT);
    let left = offset;
    let node = /** @type {Text} */ (walker.nextNode());
    while (node && left > node.length) {
      left -= node.length;
      node = /** @type {Text} */ (walker.nextNode());
    }
    const range = document.createRange();
    range.setStart(node, left);
    range.collapse(true);
    return range.getClientRects()[0] ?? node.parentElement.getBoundingClientRect();
  }

  #selected() {
    const { value, selectionStart, selectionEnd } = this.textarea;
    const marks = this.manuscript.marksIn(selectionStart, selectionEnd);
    return { text: value.slice(selectionStart, selectionEnd), marks };
  }

  #input({ inputType }) {
    if (this.isReplacing) return;
    const { value } = this.textarea;
    if (UNDOING.has(inputType)) this.manuscript.restore(value, this.caret);
    else this.manuscript.edit(value, this.caret, PASTING.has(inputType) ? this.copied : null);
    this.#render();
    this.changed(null);
  }

  #render() {
    const nodes = this.manuscript.parts.map(({ text, by }) => {
      if (by === "person") return document.createTextNode(text);
      const mark = document.createElement("mark");
      mark.textContent = text;
      return mark;
    });
    // A character after the last line break, which has no height without one.
    this.behind.replaceChildren(...nodes, document.createTextNode("\u200b"));
  }
}

// The selection in another view; all of it is generated where the view names a model.
function selectionElsewhere(target) {
  const text = withLineFeeds(getSelection().toString());
  const element = target instanceof Element ? target : target.parentElement;
  const model = element?.closest("[data-model]")?.dataset.model;
  return { text, marks: text && model ? [{ start: 0, end: text.length, model }] : [] };
}
