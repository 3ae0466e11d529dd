// Keeping a text: on this device as it is written, in files, and in links.

import { validMarks } from "./manuscript.js";

const KEPT = "stillhouse.manuscript";
const BEFORE = "stillhouse.manuscript.before";
const LINK_CHARACTERS = 16_000;

export function keep({ text, marks }) {
  localStorage.setItem(KEPT, JSON.stringify({ text, marks }));
}

export const kept = () => read(localStorage.getItem(KEPT));

// What was there before a text from a link, or a new one, took its place.
export const keptBefore = () => read(localStorage.getItem(BEFORE));

export function setAside() {
  const own = localStorage.getItem(KEPT);
  if (read(own)?.text.trim()) localStorage.setItem(BEFORE, own);
}

function read(json) {
  try {
    const { text, marks } = JSON.parse(json);
    if (typeof text !== "string") return null;
    return { text, marks: validMarks(text, marks) ? marks : [] };
  } catch {
    return null;
  }
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

// The text of the link that the page was opened by; null where it was none, or is damaged.
export async function fromLink() {
  const data = /^#text=([\w-]+)$/.exec(location.hash)?.[1];
  if (!data) return null;
  try {
    const letters = atob(data.replaceAll("-", "+").replaceAll("_", "/"));
    const packed = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
    const bytes = await through(new DecompressionStream("deflate-raw"), packed);
    return read(new TextDecoder().decode(bytes));
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
  const { machineShare, models } = manuscript;
  if (!models.length) return "No part of this text was written by a machine.";
  const percent = Math.max(1, Math.round(100 * machineShare));
  return `${percent} % of this text was written by a machine (${models.join(", ")}).`;
}

export function exported(manuscript, format) {
  const note = provenance(manuscript);
  if (format === "txt") return `${manuscript.text.trimEnd()}\n\n[${note}]\n`;
  if (format === "html") return page(manuscript, note);
  const parts = manuscript.parts.map(({ text, model }) => ({
    text,
    written_by: model ? "machine" : "person",
    ...(model && { model }),
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
  for (const { text, model } of manuscript.parts) {
    const part = model ? found.createElement("mark") : found.createTextNode(text);
    if (model) {
      part.textContent = text;
      part.title = `written by ${model}`;
    }
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
