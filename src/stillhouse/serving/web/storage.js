// Values in the browser's storage. Where it cannot be written (forbidden, or full), they last until the
// page is closed. Names in storage never change: texts are saved under them.

const unsaved = new Map();

export function read(name, area = "localStorage") {
  if (unsaved.has(name)) return unsaved.get(name);
  try {
    return JSON.parse(window[area].getItem(name));
  } catch {
    return null;
  }
}

export function store(name, value, area = "localStorage") {
  try {
    window[area].setItem(name, JSON.stringify(value));
    unsaved.delete(name);
  } catch {
    if (!unsaved.size) dispatchEvent(new Event("unsaved")); // once, not at every key press
    unsaved.set(name, structuredClone(value));
  }
}
