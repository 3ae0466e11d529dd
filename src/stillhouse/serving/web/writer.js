// The page to write on: a textarea, and behind it the same text with what machines wrote marked.

import { Manuscript, normalized, withLineFeeds } from "./manuscript.js";

const UNDOING = new Set(["historyUndo", "historyRedo"]);
const PASTING = new Set(["insertFromPaste", "insertFromDrop"]);

export class Writer {
  // `changed` is called after every change; `inserting` tells whether a suggestion made it.
  constructor(textarea, behind, changed) {
    this.textarea = textarea;
    this.behind = behind;
    this.manuscript = new Manuscript();
    this.isReplacing = false; // what is put there is marked once, when all of it is there
    this.changed = changed;
    this.copied = null; // {text, marks}, so that what is moved keeps its marks
    textarea.addEventListener("input", (event) => this.#input(event));
    for (const leaving of ["copy", "cut", "dragstart"]) {
      document.addEventListener(leaving, ({ target }) => {
        this.copied = target === textarea ? this.#selected() : elsewhere(target);
      });
    }
  }

  get caret() {
    return this.textarea.selectionEnd;
  }

  // Begin with this text; nothing to undo.
  open(given) {
    const { text, marks } = normalized(given);
    this.textarea.value = text;
    this.manuscript = new Manuscript(text, marks);
    this.#render();
  }

  // Put a model's text in the place of a stretch, as one step to undo.
  insert(start, end, text, model) {
    const { length } = this.manuscript.text;
    this.#put(start, end, text);
    const { value } = this.textarea;
    const newEnd = end + value.length - length;
    this.manuscript.insert(value, { start, oldEnd: end, newEnd }, model);
    this.#render();
    this.changed(model);
  }

  // Put a whole other text there, which can be undone.
  replace(given) {
    const { text, marks } = normalized(given);
    const { length } = this.manuscript.text;
    this.#put(0, length, text);
    this.manuscript.become(text, marks);
    this.#render();
    this.changed(null);
  }

  // The browser tells of a line break as of a change of its own: these are not listened to.
  #put(start, end, text) {
    this.textarea.focus();
    this.textarea.setSelectionRange(start, end);
    this.isReplacing = true;
    // Deprecated, and still the only way in which a page's change can be undone by the browser.
    const done = document.execCommand(text ? "insertText" : "delete", false, withLineFeeds(text));
    if (!done) this.textarea.setRangeText(withLineFeeds(text), start, end, "end");
    this.isReplacing = false;
  }

  // Where on the screen a place in the text is.
  rectAt(offset) {
    const walker = document.createTreeWalker(this.behind, NodeFilter.SHOW_TEXT);
    let left = offset;
    let node = walker.nextNode();
    while (node && left > node.length) {
      left -= node.length;
      node = walker.nextNode();
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
    // Something behind the last line break, without which it has no height.
    this.behind.replaceChildren(...nodes, document.createTextNode("\u200b"));
  }
}

// What is selected in another view; all of it is a machine's where the view says of which.
function elsewhere(target) {
  const text = withLineFeeds(getSelection().toString());
  const place = target instanceof Element ? target : target.parentElement;
  const model = place?.closest("[data-model]")?.dataset.model;
  return { text, marks: text && model ? [{ start: 0, end: text.length, model }] : [] };
}
