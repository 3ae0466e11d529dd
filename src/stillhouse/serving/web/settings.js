// The writer's settings, saved in the browser.

import { read, store } from "./storage.js";

const SETTINGS_KEY = "stillhouse.settings";
const DEFAULTS = {
  model: null,
  num_suggestions: 3,
  max_new_tokens: 12,
  temperature: 1,
  top_p: 0.9,
  repetition_penalty: 1.1,
  fixedSeed: false,
  seed: 1,
  theme: "auto",
};

export const settings = { ...DEFAULTS, ...loaded() };

function loaded() {
  const isKnown = ([name, value]) =>
    name in DEFAULTS && (name === "model" || typeof value === typeof DEFAULTS[name]);
  return Object.fromEntries(Object.entries(read(SETTINGS_KEY) ?? {}).filter(isKnown));
}

// Show the settings in the form, and save its changes.
export function bind(form, changed) {
  for (const field of form.elements) {
    if (!(field.name in DEFAULTS)) continue;
    if (field.type === "checkbox") field.checked = settings[field.name];
    else if (settings[field.name] !== null) field.value = settings[field.name];
    show(field);
  }
  form.addEventListener("input", ({ target }) => {
    if (!(target.name in DEFAULTS) || !target.checkValidity()) return;
    if (target.type === "checkbox") settings[target.name] = target.checked;
    else if (target.type === "range" || target.type === "number") {
      settings[target.name] = target.valueAsNumber;
    } else settings[target.name] = target.value;
    show(target);
    store(SETTINGS_KEY, settings);
    changed(target.name);
  });
}

function show(field) {
  const output = field.form.querySelector(`output[for="${field.id}"]`);
  if (output) output.value = field.value;
}

// The sampling parameters of a request; `set` numbers the requests that a fixed seed must tell apart.
export function sampling(set = 0) {
  const { max_new_tokens, temperature, top_p, repetition_penalty } = settings;
  const seed = settings.fixedSeed
    ? settings.seed + set
    : crypto.getRandomValues(new Uint32Array(1))[0];
  return { max_new_tokens, temperature, top_p, repetition_penalty, seed };
}
