// The page to write on: a textarea, and behind it the same text with what machines wrote marked.

import { Manuscript } from "./manuscript.js";

const UNDOING = new Set(["historyUndo", "historyRedo"]);

export class Writer {
  // `changed` is called after every change; `inserting` tells whether a suggestion made it.
  constructor(textarea, behind, changed) {
    this.textarea = textarea;
    this.behind = behind;
    this.manuscript = new Manuscript();
    this.inserting = null;
    this.changed = changed;
    textarea.addEventListener("input", (event) => this.#input(event));
  }

  get caret() {
    return this.textarea.selectionEnd;
  }

  // Begin with this text; nothing to undo.
  open(text, marks) {
    this.textarea.value = text;
    this.manuscript = new Manuscript(this.textarea.value, marks);
    this.#render();
  }

  // Put a model's text in the place of a stretch, as one step to undo.
  insert(start, end, text, model) {
    this.textarea.focus();
    this.textarea.setSelectionRange(start, end);
    this.inserting = { start, oldEnd: end, model };
    // Deprecated, and still the only way in which a page's change can be undone by the browser.
    const done = document.execCommand("insertText", false, text);
    if (!done) {
      this.textarea.setRangeText(text, start, end, "end");
      this.#input({ inputType: "insertText" });
    }
    this.inserting = null;
  }

  // Put a whole other text there, which can be undone.
  replace(text, marks = []) {
    this.textarea.focus();
    this.textarea.select();
    const done = document.execCommand(text ? "insertText" : "delete", false, text);
    if (!done) this.textarea.value = text;
    this.manuscript.edit(this.textarea.value, this.caret);
    this.manuscript.marks = marks;
    this.manuscript.states.set(this.manuscript.text, marks);
    this.#render();
    this.changed(null);
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

  #input(event) {
    const { value } = this.textarea;
    if (UNDOING.has(event.inputType)) this.manuscript.restore(value, this.caret);
    else if (this.inserting) {
      const { model, ...stretch } = this.inserting;
      this.manuscript.insert(value, { ...stretch, newEnd: this.caret }, model);
    } else this.manuscript.edit(value, this.caret);
    this.#render();
    this.changed(this.inserting?.model ?? null);
  }

  #render() {
    const nodes = this.manuscript.parts.map(({ text, model }) => {
      if (!model) return document.createTextNode(text);
      const mark = document.createElement("mark");
      mark.textContent = text;
      return mark;
    });
    // Something behind the last line break, without which it has no height.
    this.behind.replaceChildren(...nodes, document.createTextNode("\u200b"));
  }
}
