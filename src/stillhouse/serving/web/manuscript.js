// A text, and who wrote which part of it. Nothing here touches the page.
//
// A mark is a stretch that a machine wrote: {start, end, model}, in units of UTF-16, in order, never
// overlapping. What a person types inside one splits it.

const REMEMBERED = 200; // states, so that undoing brings the marks back with the text

export class Manuscript {
  constructor(text = "", marks = []) {
    this.text = text;
    this.marks = marks;
    this.states = new Map([[text, marks]]);
  }

  // The text has become `next`, with the caret at `caret`: a person wrote what is new.
  edit(next, caret) {
    this.#change(next, change(this.text, next, caret), null);
  }

  // A model wrote what is now from `start` to `newEnd`, in the place of what was up to `oldEnd`: all
  // of it, also where a person had written the same.
  insert(next, stretch, model) {
    this.#change(next, stretch, model);
  }

  #change(next, { start, oldEnd, newEnd }, model) {
    const shift = newEnd - oldEnd;
    const marks = [];
    for (const mark of this.marks) {
      if (mark.start < start) marks.push({ ...mark, end: Math.min(mark.end, start) });
      if (mark.end > oldEnd) {
        marks.push({ ...mark, start: Math.max(mark.start, oldEnd) + shift, end: mark.end + shift });
      }
    }
    if (model && newEnd > start) marks.push({ start, end: newEnd, model });
    this.marks = joined(marks.sort((a, b) => a.start - b.start));
    this.text = next;
    this.#remember();
  }

  // The text has become one that it was before, by undo or redo.
  restore(next, caret) {
    const known = this.states.get(next);
    if (known === undefined) return this.edit(next, caret);
    this.text = next;
    this.marks = known;
  }

  #remember() {
    this.states.delete(this.text);
    this.states.set(this.text, this.marks);
    if (this.states.size > REMEMBERED) this.states.delete(this.states.keys().next().value);
  }

  // Stretches of the text in order: {text, model}, where model is null for what a person wrote.
  get parts() {
    const parts = [];
    let at = 0;
    for (const { start, end, model } of this.marks) {
      if (start > at) parts.push({ text: this.text.slice(at, start), model: null });
      parts.push({ text: this.text.slice(start, end), model });
      at = end;
    }
    if (at < this.text.length) parts.push({ text: this.text.slice(at), model: null });
    return parts;
  }

  // The share of the characters that machines wrote, from 0 to 1.
  get machineShare() {
    const written = this.marks.reduce((sum, mark) => sum + mark.end - mark.start, 0);
    return this.text.length ? written / this.text.length : 0;
  }

  get models() {
    return [...new Set(this.marks.map((mark) => mark.model))];
  }
}

// Where two texts differ: what was from `start` to `oldEnd` is now from `start` to `newEnd`. What
// stands behind the caret has not changed, which tells which of two equal letters is the new one.
function change(old, next, caret) {
  let behind = next.length - caret;
  if (behind > old.length || old.slice(old.length - behind) !== next.slice(caret)) {
    behind = 0;
    const most = Math.min(old.length, next.length);
    while (behind < most && old.at(-1 - behind) === next.at(-1 - behind)) behind += 1;
  }
  const most = Math.min(old.length, next.length) - behind;
  let start = 0;
  while (start < most && old[start] === next[start]) start += 1;
  return { start, oldEnd: old.length - behind, newEnd: next.length - behind };
}

function joined(marks) {
  const found = [];
  for (const mark of marks) {
    const last = found.at(-1);
    if (mark.end <= mark.start) continue;
    if (last && last.end === mark.start && last.model === mark.model) last.end = mark.end;
    else found.push({ ...mark });
  }
  return found;
}

// The marks of a stored text, if they are such; a damaged one is not trusted.
export function validMarks(text, marks) {
  let at = 0;
  return (
    Array.isArray(marks) &&
    marks.every((mark) => {
      const fits = Number.isInteger(mark?.start) && Number.isInteger(mark?.end) &&
        typeof mark.model === "string" && at <= mark.start && mark.start < mark.end &&
        mark.end <= text.length;
      at = mark?.end;
      return fits;
    })
  );
}
