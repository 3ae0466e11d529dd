// Requests to the server: JSON responses, event streams, and errors.

import { read, store } from "./storage.js";

const API_KEY = "stillhouse.key";
const TIMEOUT_MS = 30_000; // without an event
const RETRY_MS = 1_000;
const DISCONNECTED = "The connection was lost.";

export class ServerError extends Error {
  status = 0; // of the HTTP response, if there was one
}

let key = read(API_KEY, "sessionStorage") ?? "";

export function setKey(given) {
  key = given;
  store(API_KEY, given, "sessionStorage");
}

// A signal that also aborts `milliseconds` after the last call of `heard`.
function withTimeout(signal, milliseconds = TIMEOUT_MS) {
  const timeout = new AbortController();
  const error = new ServerError(`The server has not responded for ${milliseconds / 1000} seconds.`);
  let timer = null;
  const end = () => clearTimeout(timer);
  const heard = () => {
    end();
    timer = setTimeout(() => timeout.abort(error), milliseconds);
  };
  heard();
  return { either: AbortSignal.any([signal, timeout.signal].filter(Boolean)), heard, end };
}

async function send(path, body, signal) {
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
    throw new ServerError("The server cannot be reached. Is `stillhouse write` still running?");
  }
  if (response.ok) return response;
  const content = await response.json().catch(() => ({}));
  const error = new ServerError(content.error?.message ?? content.error ?? `The server responded with ${response.status}.`);
  error.status = response.status;
  throw error;
}

// The JSON response to a body, or to a GET without one, within `milliseconds`.
export async function fetchJson(path, body, milliseconds) {
  const { either, end } = withTimeout(null, milliseconds);
  try {
    return await (await send(path, body, either)).json();
  } catch (error) {
    either.throwIfAborted();
    throw error instanceof ServerError ? error : new ServerError(DISCONNECTED);
  } finally {
    end();
  }
}

// The models, once the server has loaded them.
export async function models(waiting) {
  for (;;) {
    try {
      return (await fetchJson("/editor/models")).models;
    } catch (error) {
      if (error.status !== 503) throw error;
      waiting();
      await new Promise((done) => setTimeout(done, RETRY_MS));
    }
  }
}

// The events of a response as they come. Ends without an error where `signal` is aborted.
export async function* stream(path, body, signal) {
  const { either, heard, end } = withTimeout(signal);
  try {
    const response = await send(path, body, either);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) {
        if (buffer) throw new ServerError("The response ended early.");
        return;
      }
      heard();
      buffer += value;
      const whole = buffer.split("\n\n");
      buffer = whole.pop();
      for (const event of whole) {
        const data = JSON.parse(event.slice("data: ".length));
        if (data.error) throw new ServerError(data.error);
        yield data;
      }
    }
  } catch (error) {
    if (signal.aborted) return;
    either.throwIfAborted();
    throw error instanceof ServerError ? error : new ServerError(DISCONNECTED);
  } finally {
    end();
  }
}
