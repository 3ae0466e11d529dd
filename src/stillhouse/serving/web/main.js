// The page: connects its views.

import { Chat } from "./chat.js";
import { Compare } from "./compare.js";
import { HeatMap } from "./heatmap.js";
import { Inspect } from "./inspect.js";
import {
  MANUSCRIPT_KEY, backUp, download, fromLink, isLink, linkTo, nextBackup, save, saved, swapWithBackup,
} from "./persistence.js";
import { models, setKey } from "./server.js";
import { bind, settings } from "./settings.js";
import { Story } from "./story.js";
import { Suggestions } from "./suggestions.js";
import { hasForm, taskForm } from "./tasks.js";
import { Writer } from "./writer.js";

const SAVE_DELAY_MS = 300;
/** @type {(id: string) => any} */
const $ = (id) => document.getElementById(id);

// Write to the status line, which screen readers announce; `quietly`, to screen readers alone.
function announce(text, { quietly = false } = {}) {
  const place = $(quietly ? "aloud" : "status");
  place.textContent = "";
  requestAnimationFrame(() => (place.textContent = text));
}

// Show an alert; `retry` adds a button to try again.
function showAlert(text, retry = null) {
  $("trouble-text").textContent = text;
  $("trouble").hidden = false;
  $("trouble-retry").hidden = !retry;
  $("trouble-retry").onclick = () => {
    $("trouble").hidden = true;
    retry();
  };
  $("trouble-close").onclick = () => ($("trouble").hidden = true);
}

function onError(error, retry) {
  const showError = () => showAlert(`${error.message} Your text is safe.`, retry);
  if (error.status === 401) askForKey(retry, showError);
  else showError();
}

function askForKey(retry, onCancel) {
  const dialog = $("asking-key");
  dialog.returnValue = ""; // the value after Esc
  dialog.addEventListener("close", () => {
    if (dialog.returnValue !== "given" || !$("key").value) return onCancel();
    setKey($("key").value);
    retry();
  }, { once: true });
  dialog.showModal();
}

// Saving the text.

let saveTimer = null;
let tab = null; // names this tab's backups, once another tab owns the saved text

function saveNow() {
  clearTimeout(saveTimer);
  saveTimer = null;
  if (tab) backUp(writer.manuscript, { name: tab });
  else save(writer.manuscript);
  showRestore();
}

// Two tabs would overwrite each other's text: the one that sees the other's change writes backups.
addEventListener("storage", ({ key }) => {
  if (tab || key !== MANUSCRIPT_KEY || saved()?.text === writer.manuscript.text) return;
  tab = String(Math.random());
  saveNow();
  showAlert(
    "This page is open in another tab too, whose text is saved. " +
      "What you write here is saved as a backup.",
  );
});

addEventListener("unsaved", () => {
  showAlert("This browser cannot save your text; export it before you leave.");
});

function changed(model) {
  if (model === null && suggestions.isOpen) suggestions.close();
  showCounts();
  clearTimeout(saveTimer);
  saveTimer = setTimeout(saveNow, SAVE_DELAY_MS);
}

function showCounts() {
  const words = (writer.manuscript.text.match(/\S+/g) ?? []).length;
  const percentages = ["machine", "unknown"].map((by) => [writer.manuscript.percentBy(by), by]);
  const parts = percentages.filter(([percent]) => percent).map(([percent, by]) => `, ${percent} % ${by}`);
  $("counts").textContent = `${words.toLocaleString("en")} ${words === 1 ? "word" : "words"}${parts.join("")}`;
}

const writer = new Writer($("text"), $("marks"), changed);
const suggestions = new Suggestions(
  writer,
  {
    popover: $("popover"),
    list: $("suggestions"),
    controls: {
      take: $("take"), takeWord: $("take-word"), earlier: $("earlier"), set: $("set"),
      more: $("more"), stop: $("stop"), close: $("close"),
    },
  },
  { announce, onError },
);
const heat = new HeatMap(
  {
    text: $("heat-text"), detail: $("heat-token"), legend: $("heat-legend"),
    summary: $("heat-summary"), stopButton: $("heat-stop"),
  },
  {
    announce, onError,
    // The rest of the text is selected, and stays until a suggestion replaces it.
    continueFrom: (start) => {
      show("write");
      writer.textarea.focus();
      writer.textarea.setSelectionRange(start, writer.manuscript.text.length);
      suggestions.open();
    },
  },
);
const compare = new Compare(
  {
    student: { text: $("student-text"), facts: $("student-facts") },
    teacher: { text: $("teacher-text"), facts: $("teacher-facts") },
    agreement: $("agreement"),
    draft: { section: $("draft"), text: $("draft-text"), facts: $("draft-facts") },
    stopButton: $("compare-stop"),
  },
  { announce, onError, textBefore: () => writer.manuscript.text.slice(0, writer.caret) },
);
new Chat(elementsOf("chat"), { announce, onError });
const inspect = new Inspect(
  {
    neuron: $("inspect-neuron"), strongest: $("inspect-strongest"), contexts: $("inspect-contexts"), layers: $("inspect-layers"),
    effects: { ablation: $("inspect-ablation"), direct: $("inspect-direct") },
  },
  { announce, onError, text: () => writer.manuscript.text.slice(0, writer.caret) },
);
const story = new Story(elementsOf("story"), { announce, onError });

function elementsOf(view) {
  const parts = ["pinned", "turns", "form", "field", "stop", "retry", "undo", "begin", "restore"];
  return Object.fromEntries(parts.map((part) => [part, $(`${view}-${part}`)]));
}

// The tabs.

/** @type {HTMLElement[]} */
const tabs = Array.from(document.querySelectorAll("[role=tab]"));

function show(name) {
  suggestions.close();
  announce(""); // the message belongs to another tab
  for (const tab of tabs) {
    const isShown = tab.id === `tab-${name}`;
    tab.ariaSelected = String(isShown);
    tab.tabIndex = isShown ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !isShown;
  }
  if (name === "heat") scoreText();
}

function scoreText() {
  const { text } = writer.manuscript;
  const model = $("heat-model").value;
  if (heat.source !== text || heat.model !== model) {
    heat.model = model;
    heat.score(text, model);
  }
}

for (const tab of tabs) tab.addEventListener("click", () => show(tab.id.slice("tab-".length)));
$("tabs").addEventListener("keydown", ({ key }) => {
  const shown = tabs.filter((tab) => !tab.hidden);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
  if (!step) return;
  const active = shown.indexOf(/** @type {any} */ (document.activeElement));
  const next = shown[(active + step + shown.length) % shown.length];
  next.focus();
  next.click();
});

// Replace the text, with a backup of it.
function replaceText(other) {
  backUp(writer.manuscript);
  setText(other);
}

function setText(other) {
  writer.replace(other);
  saveNow();
  warnIfDamaged(other);
}

function warnIfDamaged({ isDamaged = false }) {
  if (!isDamaged) return;
  showAlert("The marks of this text were damaged: its author is shown and exported as unknown.");
}

function showRestore() {
  $("restore").hidden = !nextBackup(writer.manuscript);
}

// Buttons.

$("suggest").addEventListener("click", () => {
  writer.textarea.focus();
  suggestions.open();
});
$("new").addEventListener("click", () => replaceText({ text: "", marks: [] }));
$("restore").addEventListener("click", () => setText(swapWithBackup(writer.manuscript)));
$("open-settings").addEventListener("click", () => $("settings").showModal());
$("export").addEventListener("click", () => $("exporting").showModal());
$("exporting").addEventListener("click", ({ target }) => {
  if (target.dataset.format) download(writer.manuscript, target.dataset.format);
});
$("share").addEventListener("click", async () => {
  const link = await linkTo(writer.manuscript);
  if (!link) return onError(new Error("The text is too long for a link; export it instead."), () => $("exporting").showModal());
  $("link").value = link;
  $("sharing").showModal();
  $("link").select();
});
$("copy").addEventListener("click", async () => {
  $("link").select();
  try {
    await navigator.clipboard.writeText($("link").value);
    announce("Copied.");
  } catch {
    announce("The browser does not allow copying; press Ctrl+C.");
  }
});
$("heat-run").addEventListener("click", () => heat.score(writer.manuscript.text, $("heat-model").value));
$("heat-model").addEventListener("change", scoreText);
for (const choice of document.getElementsByName("heat-by")) {
  choice.addEventListener("change", () => heat.colorBy(choice.getAttribute("value")));
}
$("compare-form").addEventListener("submit", (event) => {
  event.preventDefault();
  nameColumns();
  compare.run($("compare-student").value, $("compare-teacher").value);
});
$("compare-draft").addEventListener("click", () => {
  nameColumns();
  compare.runSpeculative($("compare-student").value, $("compare-teacher").value);
});
$("inspect-form").addEventListener("submit", (event) => {
  event.preventDefault();
  inspect.showNeuron($("inspect-model").value, $("inspect-layer").valueAsNumber, $("inspect-number").valueAsNumber);
});
$("inspect-layers-run").addEventListener("click", () => inspect.showLayers($("inspect-model").value));
$("story-write").addEventListener("click", () => {
  show("write");
  const marks = [];
  let text = "";
  for (const turn of story.history) {
    const start = text.length;
    text += turn.text;
    if (turn.by === "model") marks.push({ start, end: text.length, model: turn.model });
  }
  replaceText({ text, marks });
});

function nameColumns() {
  $("student-name").textContent = $("compare-student").value;
  $("teacher-name").textContent = $("compare-teacher").value;
}

// The models.

function fill(found) {
  const causal = found.filter(({ task }) => task === "text-generation");
  for (const select of document.querySelectorAll("select.models")) {
    select.replaceChildren(...causal.map(({ name }) => new Option(name, name)));
  }
  if (!causal.some(({ name }) => name === settings.model)) settings.model = causal[0]?.name ?? null;
  const bySize = causal.toSorted((a, b) => a.num_parameters - b.num_parameters);
  const offer = () => inspect.offer(causal.find(({ name }) => name === $("inspect-model").value));
  $("inspect-model").addEventListener("change", offer);
  if (causal.length) offer();
  $("compare-student").value = bySize[0]?.name;
  $("compare-teacher").value = bySize.at(-1)?.name;
  const encoders = found.filter(hasForm);
  $("tab-tasks").hidden = !encoders.length;
  $("tasks").replaceChildren(...encoders.map((model) => taskForm(model, { announce, onError })));
  for (const tab of tabs.slice(0, -1)) tab.hidden = !causal.length;
  if (!causal.length) show("tasks");
  else showChat(causal);
  $("compare-draft").disabled = causal.length < 2;
  bind($("settings-form"), (name) => {
    if (name === "theme") useTheme();
    if (name !== "model") return;
    showLimitations(found);
    showChat(causal);
  });
  showLimitations(found);
}

// The chat is there where the model has a chat template.
function showChat(causal) {
  const tab = $("tab-chat");
  tab.hidden = !causal.find(({ name }) => name === settings.model).has_chat_template;
  if (tab.hidden && !$("chat").hidden) show("write");
}

function showLimitations(found) {
  const model = found.find(({ name }) => name === settings.model) ?? found[0];
  const size = (model.num_parameters / 1e6).toFixed(1);
  const note = model.limitations || "Its model card does not describe limitations; generated text may be false, unfair or offensive.";
  $("limits").textContent =
    `${model.name}, ${size} M parameters, ${model.precision}. ${note.replaceAll(/\s*\n-?\s*/g, " ").replace(/^- /, "")}`;
}

function useTheme() {
  document.documentElement.dataset.theme = settings.theme;
}

async function start() {
  useTheme();
  const own = saved() ?? { text: "", marks: [] };
  writer.open(own);
  warnIfDamaged(own);
  const { length } = writer.manuscript.text;
  writer.textarea.setSelectionRange(length, length);
  showCounts();
  showRestore();
  await openLink();
  await loadModels();
}

async function openLink() {
  if (!isLink()) return;
  const linked = await fromLink();
  history.replaceState(null, "", location.pathname);
  if (!linked) return showAlert("This link is damaged: its text cannot be read.");
  show("write");
  replaceText(linked);
  announce("This is the text of the link; yours is saved as a backup.");
}

async function loadModels() {
  try {
    fill(await models(() => announce("Loading models…")));
    announce("Ready.");
  } catch (error) {
    onError(error, loadModels);
  }
}

addEventListener("hashchange", openLink);
addEventListener("pagehide", () => saveTimer && saveNow());
document.addEventListener("visibilitychange", () => saveTimer && saveNow());
start();
