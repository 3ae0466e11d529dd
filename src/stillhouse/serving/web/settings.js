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

// Names in storage, where they differ from those in requests.
const SAVED_NAMES = { num_suggestions: "number", max_new_tokens: "tokens" };
const savedName = (name) => SAVED_NAMES[name] ?? name;

export const settings = { ...DEFAULTS, ...loaded() };

function loaded() {
  const saved = read(SETTINGS_KEY) ?? {};
  const found = Object.keys(DEFAULTS).map((name) => [name, saved[savedName(name)]]);
  const isValid = ([name, value]) =>
    value !== undefined && (name === "model" || typeof value === typeof DEFAULTS[name]);
  return Object.fromEntries(found.filter(isValid));
}

function save() {
  const named = Object.entries(settings).map(([name, value]) => [savedName(name), value]);
  store(SETTINGS_KEY, Object.fromEntries(named));
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
    save();
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
