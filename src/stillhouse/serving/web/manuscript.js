// A text, and who wrote which part of it. Nothing here touches the page.
//
// A mark is a stretch that a machine wrote: {start, end, model}, in units of UTF-16, in order, never
// overlapping. What a person types inside one splits it. `model` is null where it is not known who
// wrote the stretch: its marks were damaged, or forgotten.

const REMEMBERED = 200; // states, so that undoing brings the marks back with the text
const LINE_BREAKS = /\r\n?/g;

export class Manuscript {
  constructor(text = "", marks = []) {
    this.text = text;
    this.marks = marks;
    this.states = new Map([[text, marks]]);
    this.hadMarks = marks.length > 0;
  }

  // The text has become `next`, with the caret at `caret`: a person wrote what is new, but for what
  // `pasted` ({text, marks}) marks of it.
  edit(next, caret, pasted = null) {
    const stretch = change(this.text, next, caret);
    const start = stretch.newEnd - (pasted?.text.length ?? 0);
    // It may begin as what it replaces does, where no change is to be seen.
    const isPasted = start <= stretch.start && next.slice(start, stretch.newEnd) === pasted?.text;
    if (isPasted) this.#change(next, { ...stretch, start }, moved(pasted.marks, start));
    else this.#change(next, stretch, []);
  }

  // Another text.
  become(text, marks) {
    this.text = text;
    this.marks = marks;
    this.#remember();
  }

  // A model wrote what is now from `start` to `newEnd`, in the place of what was up to `oldEnd`: all
  // of it, also where a person had written the same.
  insert(next, stretch, model) {
    this.#change(next, stretch, [{ start: stretch.start, end: stretch.newEnd, model }]);
  }

  // The text has become one that it was before, by undo or redo. What came back of a state that is
  // forgotten may be a machine's, if anything ever was.
  restore(next, caret) {
    const known = this.states.get(next);
    if (known !== undefined) return this.become(next, known);
    const stretch = change(this.text, next, caret);
    const { start, newEnd: end } = stretch;
    this.#change(next, stretch, this.hadMarks ? [{ start, end, model: null }] : []);
  }

  // The marks in a stretch, by their places in it.
  marksIn(start, end) {
    const inside = this.marks.map((mark) => ({
      ...mark, start: Math.max(mark.start, start), end: Math.min(mark.end, end),
    }));
    return moved(joined(inside), -start);
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
    this.become(next, joined(marks.sort((a, b) => a.start - b.start)));
  }

  #remember() {
    this.hadMarks ||= this.marks.length > 0;
    this.states.delete(this.text);
    this.states.set(this.text, this.marks);
    if (this.states.size > REMEMBERED) this.states.delete(this.states.keys().next().value);
  }

  // Stretches of the text in order: {text, by, model}, by a "person", a "machine" or "unknown".
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

  // Whole percents of the characters that are by a machine, or by nobody known: 0 and 100 only where
  // it is none, or all.
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
  // Two characters may share half of their surrogate pairs.
  if (isWithinPair(old, start) || isWithinPair(next, start)) start -= 1;
  if (isWithinPair(old, old.length - behind) || isWithinPair(next, next.length - behind)) behind -= 1;
  return { start, oldEnd: old.length - behind, newEnd: next.length - behind };
}

const isWithinPair = (text, at) =>
  /[\ud800-\udbff]/.test(text[at - 1] ?? "") && /[\udc00-\udfff]/.test(text[at] ?? "");

// The end of a text, of so many units at most, that does not begin within a character.
export function lastPart(text, most) {
  const start = Math.max(0, text.length - most);
  return text.slice(isWithinPair(text, start) ? start + 1 : start);
}

// Line breaks as a textarea has them.
export const withLineFeeds = (text) => text.replace(LINE_BREAKS, "\n");

// A text from elsewhere, as a textarea would have it, with its marks.
export function normalized({ text, marks }) {
  if (!text.includes("\r")) return { text, marks };
  const at = (place) => withLineFeeds(text.slice(0, place)).length;
  const places = marks.map((mark) => ({ ...mark, start: at(mark.start), end: at(mark.end) }));
  return { text: withLineFeeds(text), marks: joined(places) };
}

const moved = (marks, by) =>
  marks.map((mark) => ({ ...mark, start: mark.start + by, end: mark.end + by }));

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

// Whether the marks of a stored text are such; a damaged one is not trusted.
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
