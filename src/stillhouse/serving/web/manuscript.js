// A text and the author of each part. Nothing here touches the page.
//
// A mark is a range of generated text, {start, end, model}, in UTF-16 units; marks are sorted and do not
// overlap. Typing inside a mark splits it. `model` is null where the author is unknown: the marks were
// damaged, or dropped from the history.

const MAX_STATES = 200; // so that undo restores the marks with the text
const LINE_BREAKS = /\r\n?/g;

export class Manuscript {
  constructor(text = "", marks = []) {
    this.text = text;
    this.marks = marks;
    this.states = new Map([[text, marks]]);
    this.hadMarks = marks.length > 0;
  }

  // The text is now `next`, with the caret at `caret`. A person wrote what is new, except for the marks
  // of `pasted` ({text, marks}).
  edit(next, caret, pasted = null) {
    const range = change(this.text, next, caret);
    const start = range.newEnd - (pasted?.text.length ?? 0);
    // A common prefix of the old and the pasted text shows no change.
    const isPasted = start <= range.start && next.slice(start, range.newEnd) === pasted?.text;
    if (isPasted) this.#change(next, { ...range, start }, shifted(pasted.marks, start));
    else this.#change(next, range, []);
  }

  // Set the text and its marks.
  set(text, marks) {
    this.text = text;
    this.marks = marks;
    this.#remember();
  }

  // A model wrote the range from `start` to `newEnd`, which replaces the one up to `oldEnd`: all of it,
  // also where a person had written the same characters.
  insert(next, range, model) {
    this.#change(next, range, [{ start: range.start, end: range.newEnd, model }]);
  }

  // Undo or redo restored an earlier text. If its state was dropped, the author of what came back is
  // unknown, unless no text was ever generated.
  restore(next, caret) {
    const known = this.states.get(next);
    if (known !== undefined) return this.set(next, known);
    const range = change(this.text, next, caret);
    const { start, newEnd: end } = range;
    this.#change(next, range, this.hadMarks ? [{ start, end, model: null }] : []);
  }

  // The marks inside a range, relative to its start.
  marksIn(start, end) {
    const inside = this.marks.map((mark) => ({
      ...mark, start: Math.max(mark.start, start), end: Math.min(mark.end, end),
    }));
    return shifted(merged(inside), -start);
  }

  #change(next, { start, oldEnd, newEnd }, added) {
    const shift = newEnd - oldEnd;
    const marks = [...added];
    for (const mark of this.marks) {
      if (mark.start < start) marks.push({ ...mark, end: Math.min(mark.end, start) });
      if (mark.end > oldEnd) {
        marks.push({ ...mark, start: Math.max(mark.start, oldEnd) + shift, end: mark.end + shift });
      }
    }
    this.set(next, merged(marks.sort((a, b) => a.start - b.start)));
  }

  #remember() {
    this.hadMarks ||= this.marks.length > 0;
    this.states.delete(this.text);
    this.states.set(this.text, this.marks);
    if (this.states.size > MAX_STATES) this.states.delete(this.states.keys().next().value);
  }

  // The ranges of the text in order: {text, by, model}, by a "person", a "machine" or "unknown".
  get parts() {
    const parts = [];
    let at = 0;
    const add = (end, by, model = null) => {
      if (end > at) parts.push({ text: this.text.slice(at, end), by, model });
      at = end;
    };
    for (const { start, end, model } of this.marks) {
      add(start, "person");
      add(end, model === null ? "unknown" : "machine", model);
    }
    add(this.text.length, "person");
    return parts;
  }

  // The percentage of characters by one kind of author, as an integer: 0 and 100 only for none and all.
  percentBy(by) {
    const { length } = this.text;
    const own = this.parts.filter((part) => part.by === by);
    const share = own.reduce((sum, part) => sum + part.text.length, 0);
    if (share === 0 || share === length) return share ? 100 : 0;
    return Math.min(99, Math.max(1, Math.round((100 * share) / length)));
  }

  get models() {
    return [...new Set(this.marks.map((mark) => mark.model))].filter((model) => model !== null);
  }
}

// The difference of two texts: `start` to `oldEnd` became `start` to `newEnd`. Text after the caret has
// not changed, which decides which of two equal letters is new.
function change(old, next, caret) {
  let suffix = next.length - caret;
  if (suffix > old.length || old.slice(old.length - suffix) !== next.slice(caret)) {
    suffix = 0;
    const limit = Math.min(old.length, next.length);
    while (suffix < limit && old.at(-1 - suffix) === next.at(-1 - suffix)) suffix += 1;
  }
  const limit = Math.min(old.length, next.length) - suffix;
  let start = 0;
  while (start < limit && old[start] === next[start]) start += 1;
  // Two characters may share one half of their surrogate pairs.
  if (isWithinPair(old, start) || isWithinPair(next, start)) start -= 1;
  if (isWithinPair(old, old.length - suffix) || isWithinPair(next, next.length - suffix)) suffix -= 1;
  return { start, oldEnd: old.length - suffix, newEnd: next.length - suffix };
}

const isWithinPair = (text, at) =>
  /[\ud800-\udbff]/.test(text[at - 1] ?? "") && /[\udc00-\udfff]/.test(text[at] ?? "");

// The last `limit` UTF-16 units of a text, or one less so as not to split a character.
export function lastPart(text, limit) {
  const start = Math.max(0, text.length - limit);
  return text.slice(isWithinPair(text, start) ? start + 1 : start);
}

// Line breaks as in a textarea.
export const withLineFeeds = (text) => text.replace(LINE_BREAKS, "\n");

// A text as a textarea would normalize it, with its marks.
export function normalized({ text, marks }) {
  if (!text.includes("\r")) return { text, marks };
  const at = (place) => withLineFeeds(text.slice(0, place)).length;
  const places = marks.map((mark) => ({ ...mark, start: at(mark.start), end: at(mark.end) }));
  return { text: withLineFeeds(text), marks: merged(places) };
}

const shifted = (marks, by) =>
  marks.map((mark) => ({ ...mark, start: mark.start + by, end: mark.end + by }));

function merged(marks) {
  const found = [];
  for (const mark of marks) {
    const last = found.at(-1);
    if (mark.end <= mark.start) continue;
    if (last && last.end === mark.start && last.model === mark.model) last.end = mark.end;
    else found.push({ ...mark });
  }
  return found;
}

// Whether the marks of a stored text are well-formed.
export function areValid(text, marks) {
  let at = 0;
  return (
    Array.isArray(marks) &&
    marks.every((mark) => {
      const fits = Number.isInteger(mark?.start) && Number.isInteger(mark?.end) &&
        (typeof mark.model === "string" || mark.model === null) && at <= mark.start &&
        mark.start < mark.end && mark.end <= text.length;
      at = mark?.end;
      return fits;
    })
  );
}
