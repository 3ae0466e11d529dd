// Keeping a text: on this device as it is written, in files, and in links.

import { areValid } from "./manuscript.js";
import { read, store } from "./stored.js";

export const KEPT = "stillhouse.manuscript";
const ASIDE = "stillhouse.manuscript.aside";
const ASIDE_MOST = 5;
const LINK_CHARACTERS = 16_000;

export const keep = ({ text, marks }) => store(KEPT, { text, marks });

export const kept = () => sound(read(KEPT));

// Texts that gave way to others, the next to bring back first.
const aside = () => [read(ASIDE)].flat().filter(sound);

export const nextAside = ({ text }) => sound(aside().find((each) => each.text !== text));

// `last` is for a text that another is brought back for, so that bringing back goes through all in
// turn. Of what is set aside again and again under one name, as it is written, the latest stays.
export function setAside({ text, marks }, { last = false, name = null } = {}) {
  if (!text.trim()) return;
  const isOther = (each) => each.text !== text && (name === null || each.name !== name);
  const others = aside().filter(isOther);
  const own = { text, marks, name, since: Date.now() };
  const all = last ? [...others, own] : [own, ...others];
  const oldest = all.reduce((a, b) => (b.since < a.since ? b : a));
  store(ASIDE, all.length > ASIDE_MOST ? all.filter((each) => each !== oldest) : all);
}

// The next text to bring back in the place of this one, which is set aside.
export function broughtBack(own) {
  const next = nextAside(own);
  store(ASIDE, aside().filter(({ text }) => text !== next.text));
  setAside(own, { last: true });
  return next;
}

// A text whose marks are damaged may be a machine's, any part of it.
function sound(found) {
  if (typeof found?.text !== "string") return null;
  const { text, marks } = found;
  if (areValid(text, marks)) return { text, marks };
  return { text, marks: text ? [{ start: 0, end: text.length, model: null }] : [], isDamaged: true };
}

async function through(transform, bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(transform);
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// A link that holds the text; null where it would be too long for one.
export async function linkTo({ text, marks }) {
  const bytes = new TextEncoder().encode(JSON.stringify({ text, marks }));
  const packed = await through(new CompressionStream("deflate-raw"), bytes);
  const letters = btoa(packed.reduce((all, byte) => all + String.fromCharCode(byte), ""));
  const data = letters.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  const link = new URL(location.href);
  link.hash = `text=${data}`;
  return data.length > LINK_CHARACTERS ? null : link.href;
}

export const isLink = () => location.hash.startsWith("#text=");

// The text of the link that the page was opened by; null where it is damaged.
export async function fromLink() {
  const data = location.hash.slice("#text=".length);
  try {
    const letters = atob(data.replaceAll("-", "+").replaceAll("_", "/"));
    const packed = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
    const bytes = await through(new DecompressionStream("deflate-raw"), packed);
    return sound(JSON.parse(new TextDecoder().decode(bytes)));
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
  const said = [];
  if (machine) {
    const models = manuscript.models.join(", ");
    said.push(`${machine} % of this text was written by a machine (${models}).`);
  }
  if (unknown) said.push(`Who wrote ${unknown} % of this text is not known: its marks were lost.`);
  return said.join(" ") || "No part of this text was written by a machine.";
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
