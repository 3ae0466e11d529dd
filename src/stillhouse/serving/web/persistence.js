// Saving a text: in the browser as it is written, in files, and in links.

import { areValid } from "./manuscript.js";
import { read, store } from "./storage.js";

export const MANUSCRIPT_KEY = "stillhouse.manuscript";
const BACKUPS_KEY = "stillhouse.manuscript.aside";
const MAX_BACKUPS = 5;
const MAX_LINK_CHARACTERS = 16_000;

export const save = ({ text, marks }) => store(MANUSCRIPT_KEY, { text, marks });

export const saved = () => validated(read(MANUSCRIPT_KEY));

// Texts that others replaced, the next to restore first.
const backups = () => [read(BACKUPS_KEY)].flat().filter(validated);

export const nextBackup = ({ text }) => validated(backups().find((each) => each.text !== text));

// `last` puts a text behind all others, so that restoring cycles through them. Of the backups with one
// `name`, which a tab writes again and again, the latest is kept.
export function backUp({ text, marks }, { last = false, name = null } = {}) {
  if (!text.trim()) return;
  const isOther = (each) => each.text !== text && (name === null || each.name !== name);
  const others = backups().filter(isOther);
  const own = { text, marks, name, since: Date.now() };
  const all = last ? [...others, own] : [own, ...others];
  const oldest = all.reduce((a, b) => (b.since < a.since ? b : a));
  store(BACKUPS_KEY, all.length > MAX_BACKUPS ? all.filter((each) => each !== oldest) : all);
}

// The next backup, in exchange for this text.
export function swapWithBackup(own) {
  const next = nextBackup(own);
  store(BACKUPS_KEY, backups().filter(({ text }) => text !== next.text));
  backUp(own, { last: true });
  return next;
}

// The author of a text whose marks are damaged is unknown, in every part of it.
function validated(found) {
  if (typeof found?.text !== "string") return null;
  const { text, marks } = found;
  if (areValid(text, marks)) return { text, marks };
  return { text, marks: text ? [{ start: 0, end: text.length, model: null }] : [], isDamaged: true };
}

async function pipe(transform, bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(transform);
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// A link that contains the text; null where it would be too long.
export async function linkTo({ text, marks }) {
  const bytes = new TextEncoder().encode(JSON.stringify({ text, marks }));
  const packed = await pipe(new CompressionStream("deflate-raw"), bytes);
  const letters = btoa(packed.reduce((all, byte) => all + String.fromCharCode(byte), ""));
  const data = letters.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  const link = new URL(location.href);
  link.hash = `text=${data}`;
  return data.length > MAX_LINK_CHARACTERS ? null : link.href;
}

export const isLink = () => location.hash.startsWith("#text=");

// The text in the page's address; null where it is damaged.
export async function fromLink() {
  const data = location.hash.slice("#text=".length);
  try {
    const letters = atob(data.replaceAll("-", "+").replaceAll("_", "/"));
    const packed = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
    const bytes = await pipe(new DecompressionStream("deflate-raw"), packed);
    return validated(JSON.parse(new TextDecoder().decode(bytes)));
  } catch {
    return null;
  }
}

const FILES = { txt: "text/plain", html: "text/html", json: "application/json" };

export function download(manuscript, format) {
  const link = document.createElement("a");
  link.download = `text.${format}`;
  link.href = URL.createObjectURL(new Blob([exported(manuscript, format)], { type: FILES[format] }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1_000);
}

// How much a machine wrote, in words.
export function provenance(manuscript) {
  const [machine, unknown] = [manuscript.percentBy("machine"), manuscript.percentBy("unknown")];
  const sentences = [];
  if (machine) {
    const models = manuscript.models.join(", ");
    sentences.push(`${machine} % of this text was written by a machine (${models}).`);
  }
  if (unknown) sentences.push(`The author of ${unknown} % of this text is unknown: its marks were lost.`);
  return sentences.join(" ") || "No part of this text was written by a machine.";
}

export function exported(manuscript, format) {
  const note = provenance(manuscript);
  if (format === "txt") return `${manuscript.text.trimEnd()}\n\n[${note}]\n`;
  if (format === "html") return page(manuscript, note);
  const parts = manuscript.parts.map(({ text, by, model }) => ({
    text,
    written_by: by,
    ...(model !== null && { model }),
  }));
  return `${JSON.stringify({ note, written: new Date().toISOString(), parts }, null, 1)}\n`;
}

function page(manuscript, note) {
  const found = document.implementation.createHTMLDocument("Text");
  const style = found.createElement("style");
  style.textContent =
    "body{font:1.1rem/1.6 Georgia,serif;max-width:40rem;margin:3rem auto;padding:0 1rem}" +
    "p{white-space:pre-wrap}mark{background:#fbe3c8}";
  const body = found.createElement("p");
  for (const { text, by, model } of manuscript.parts) {
    if (by === "person") {
      body.append(text);
      continue;
    }
    const part = found.createElement("mark");
    part.textContent = text;
    part.title = `written by ${model ?? "an unknown author"}`;
    body.append(part);
  }
  const footer = found.createElement("footer");
  footer.textContent = note;
  const charset = found.createElement("meta");
  charset.setAttribute("charset", "utf-8");
  found.head.prepend(charset);
  found.head.append(style);
  found.body.append(body, footer);
  return `<!doctype html>\n${found.documentElement.outerHTML}\n`;
}
