// Talking to the server: answers, streams of events, and what goes wrong.

import { read, store } from "./stored.js";

const KEY = "stillhouse.key";
const SILENCE_MS = 30_000; // without an event, the server is taken to be gone
const RETRY_MS = 1_000;
const BROKEN = "The connection broke off.";

export class Trouble extends Error {}

let key = read(KEY, "sessionStorage") ?? "";

export function setKey(given) {
  key = given;
  store(KEY, given, "sessionStorage");
}

// A signal that is aborted, too, when nothing was `heard` for too long.
function patience(signal) {
  const silence = new AbortController();
  const trouble = new Trouble(`The server has been silent for ${SILENCE_MS / 1000} seconds.`);
  let timer = null;
  const end = () => clearTimeout(timer);
  const heard = () => {
    end();
    timer = setTimeout(() => silence.abort(trouble), SILENCE_MS);
  };
  heard();
  return { either: AbortSignal.any([signal, silence.signal].filter(Boolean)), heard, end };
}

async function ask(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const request = { headers, signal };
  if (body !== undefined) {
    request.method = "POST";
    headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch {
    signal.throwIfAborted();
    throw new Trouble("The server does not answer. Is `stillhouse write` still running?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const trouble = new Trouble(told.error?.message ?? told.error ?? `The server says ${response.status}.`);
  trouble.status = response.status;
  throw trouble;
}

// The answer to a body, or to a GET where there is none.
export async function answerTo(path, body) {
  const { either, end } = patience();
  try {
    return await (await ask(path, body, either)).json();
  } catch (error) {
    either.throwIfAborted();
    throw error instanceof Trouble ? error : new Trouble(BROKEN);
  } finally {
    end();
  }
}

// The models, as soon as the server has loaded them.
export async function models(waiting) {
  for (;;) {
    try {
      return (await answerTo("/editor/models")).models;
    } catch (error) {
      if (error.status !== 503) throw error;
      waiting();
      await new Promise((done) => setTimeout(done, RETRY_MS));
    }
  }
}

// The events of an answer as they come. Ends early, without complaint, where `signal` is aborted.
export async function* stream(path, body, signal) {
  const { either, heard, end } = patience(signal);
  try {
    const response = await ask(path, body, either);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let waiting = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) {
        if (waiting) throw new Trouble("The answer broke off.");
        return;
      }
      heard();
      waiting += value;
      const whole = waiting.split("\n\n");
      waiting = whole.pop();
      for (const event of whole) {
        const told = JSON.parse(event.slice("data: ".length));
        if (told.error) throw new Trouble(told.error);
        yield told;
      }
    }
  } catch (error) {
    if (signal.aborted) return;
    either.throwIfAborted();
    throw error instanceof Trouble ? error : new Trouble(BROKEN);
  } finally {
    end();
  }
}
