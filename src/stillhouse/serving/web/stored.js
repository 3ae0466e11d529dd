// What this device keeps for the page. Where it keeps nothing (a browser may forbid it, or have no
// room left), what was to be kept holds for this visit.

const unkept = new Map();

export function read(name, area = "localStorage") {
  if (unkept.has(name)) return unkept.get(name);
  try {
    return JSON.parse(window[area].getItem(name));
  } catch {
    return null;
  }
}

export function store(name, value, area = "localStorage") {
  try {
    window[area].setItem(name, JSON.stringify(value));
    unkept.delete(name);
  } catch {
    if (!unkept.size) dispatchEvent(new Event("unkept")); // said once, not at every letter
    unkept.set(name, structuredClone(value));
  }
}
