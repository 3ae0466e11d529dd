// Talking to the server: answers, streams of events, and what goes wrong.

const SILENCE_MS = 30_000; // without an event, the server is taken to be gone
const RETRY_MS = 1_000;

export class Trouble extends Error {}

let key = sessionStorage.getItem("stillhouse.key") ?? "";

export function setKey(given) {
  key = given;
  sessionStorage.setItem("stillhouse.key", given);
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
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Trouble("The server does not answer. Is `stillhouse write` still running?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const trouble = new Trouble(told.error?.message ?? told.error ?? `The server says ${response.status}.`);
  trouble.status = response.status;
  throw trouble;
}

export async function post(path, body, signal) {
  return (await ask(path, body, signal)).json();
}

// The models, as soon as the server has loaded them.
export async function models(waiting) {
  for (;;) {
    try {
      return (await (await ask("/editor/models")).json()).models;
    } catch (error) {
      if (error.status !== 503) throw error;
      waiting();
      await new Promise((done) => setTimeout(done, RETRY_MS));
    }
  }
}

// The events of an answer as they come. Ends early, without complaint, where `signal` is aborted.
export async function* stream(path, body, signal) {
  const silence = new AbortController();
  const either = AbortSignal.any([signal, silence.signal]);
  let timer = setTimeout(() => silence.abort(), SILENCE_MS);
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
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
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
    if (silence.signal.aborted) {
      throw new Trouble(`The server has been silent for ${SILENCE_MS / 1000} seconds.`);
    }
    throw error instanceof Trouble ? error : new Trouble("The connection broke off.");
  } finally {
    clearTimeout(timer);
  }
}
