// The page: its parts put together.

import { Compare } from "./compare.js";
import { Heat } from "./heat.js";
import {
  KEPT, broughtBack, download, fromLink, isLink, keep, kept, linkTo, nextAside, setAside,
} from "./keeping.js";
import { models, setKey } from "./server.js";
import { bind, settings } from "./settings.js";
import { Story } from "./story.js";
import { Suggestions } from "./suggestions.js";
import { canDo, taskForm } from "./tasks.js";
import { Writer } from "./writer.js";

const KEEP_MS = 300;
const $ = (id) => document.getElementById(id);

// What is shown at the foot of the page, and read aloud; `aloud` alone is for who cannot see it.
function say(text, { aloud = false } = {}) {
  const place = $(aloud ? "aloud" : "status");
  place.textContent = "";
  requestAnimationFrame(() => (place.textContent = text));
}

// What must not be missed; `retry` where it can be tried again.
function tell(text, retry = null) {
  $("trouble-text").textContent = text;
  $("trouble").hidden = false;
  $("trouble-retry").hidden = !retry;
  $("trouble-retry").onclick = () => {
    $("trouble").hidden = true;
    retry();
  };
  $("trouble-close").onclick = () => ($("trouble").hidden = true);
}

function failed(error, retry) {
  const shown = () => tell(`${error.message} Your text is safe.`, retry);
  if (error.status === 401) askKey(retry, shown);
  else shown();
}

function askKey(retry, left) {
  const dialog = $("asking-key");
  dialog.returnValue = ""; // as Esc leaves it
  dialog.addEventListener("close", () => {
    if (dialog.returnValue !== "given" || !$("key").value) return left();
    setKey($("key").value);
    retry();
  }, { once: true });
  dialog.showModal();
}

// Keeping what is written.

let keeping = null;
let tab = null; // the name of this tab's own text, once another tab's is the one that is kept

function keepNow() {
  clearTimeout(keeping);
  keeping = null;
  if (tab) setAside(writer.manuscript, { name: tab });
  else keep(writer.manuscript);
  showBefore();
}

// Two tabs would overwrite each other's text: the one that hears of the other's gives way.
addEventListener("storage", ({ key }) => {
  if (tab || key !== KEPT || kept()?.text === writer.manuscript.text) return;
  tab = String(Math.random());
  keepNow();
  tell(
    "This page is open in another tab too, and will open with the text of that one. " +
      "What you write here is set aside.",
  );
});

addEventListener("unkept", () => {
  tell("This browser keeps nothing of what you write here; export it before you leave.");
});

function changed(model) {
  if (model === null && suggestions.isOpen) suggestions.close();
  showCounts();
  clearTimeout(keeping);
  keeping = setTimeout(keepNow, KEEP_MS);
}

function showCounts() {
  const words = (writer.manuscript.text.match(/\S+/g) ?? []).length;
  const shares = ["machine", "unknown"].map((by) => [writer.manuscript.percentBy(by), by]);
  const said = shares.filter(([percent]) => percent).map(([percent, by]) => `, ${percent} % ${by}`);
  $("counts").textContent = `${words.toLocaleString("en")} ${words === 1 ? "word" : "words"}${said.join("")}`;
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
  { say, failed },
);
const heat = new Heat(
  {
    text: $("heat-text"), detail: $("heat-token"), legend: $("heat-legend"),
    summary: $("heat-summary"), stopButton: $("heat-stop"),
  },
  {
    say, failed,
    // What follows is selected, and stands until a suggestion is taken in its place.
    goOn: (start) => {
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
  { say, failed, before: () => writer.manuscript.text.slice(0, writer.caret) },
);
const story = new Story(
  {
    memory: $("memory"), turns: $("turns"), form: $("turn-form"), field: $("turn"),
    stopButton: $("turn-stop"), beforeButton: $("story-before"),
  },
  { say, failed },
);

// The tabs.

const tabs = [...document.querySelectorAll("[role=tab]")];

function show(name) {
  suggestions.close();
  say(""); // what was said was of another tab
  for (const tab of tabs) {
    const isShown = tab.id === `tab-${name}`;
    tab.ariaSelected = String(isShown);
    tab.tabIndex = isShown ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !isShown;
  }
  if (name === "heat") readHeat();
}

function readHeat() {
  const { text } = writer.manuscript;
  const model = $("heat-model").value;
  if (heat.source !== text || heat.model !== model) {
    heat.model = model;
    heat.read(text, model);
  }
}

for (const tab of tabs) tab.addEventListener("click", () => show(tab.id.slice("tab-".length)));
$("tabs").addEventListener("keydown", ({ key }) => {
  const shown = tabs.filter((tab) => !tab.hidden);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
  if (!step) return;
  const next = shown[(shown.indexOf(document.activeElement) + step + shown.length) % shown.length];
  next.focus();
  next.click();
});

// Another text in place of this one, which is set aside.
function put(other) {
  setAside(writer.manuscript);
  place(other);
}

function place(other) {
  writer.replace(other);
  keepNow();
  tellDamage(other);
}

function tellDamage({ isDamaged }) {
  if (!isDamaged) return;
  tell("What says who wrote this text was damaged: all of it is marked, and exports say so.");
}

function showBefore() {
  $("before").hidden = !nextAside(writer.manuscript);
}

// Buttons.

$("suggest").addEventListener("click", () => {
  writer.textarea.focus();
  suggestions.open();
});
$("new").addEventListener("click", () => put({ text: "", marks: [] }));
$("before").addEventListener("click", () => place(broughtBack(writer.manuscript)));
$("open-settings").addEventListener("click", () => $("settings").showModal());
$("export").addEventListener("click", () => $("exporting").showModal());
$("exporting").addEventListener("click", ({ target }) => {
  if (target.dataset.format) download(writer.manuscript, target.dataset.format);
});
$("share").addEventListener("click", async () => {
  const link = await linkTo(writer.manuscript);
  if (!link) return failed(new Error("The text is too long for a link; export it instead."), () => $("exporting").showModal());
  $("link").value = link;
  $("sharing").showModal();
  $("link").select();
});
$("copy").addEventListener("click", async () => {
  $("link").select();
  try {
    await navigator.clipboard.writeText($("link").value);
    say("Copied.");
  } catch {
    say("The browser does not let the page copy; press Ctrl+C.");
  }
});
$("heat-run").addEventListener("click", () => heat.read(writer.manuscript.text, $("heat-model").value));
$("heat-model").addEventListener("change", readHeat);
$("heat-stop").addEventListener("click", () => heat.stop());
for (const choice of document.getElementsByName("heat-by")) {
  choice.addEventListener("change", () => heat.colorBy(choice.value));
}
$("compare-form").addEventListener("submit", (event) => {
  event.preventDefault();
  nameColumns();
  compare.run($("compare-student").value, $("compare-teacher").value);
});
$("compare-draft").addEventListener("click", () => {
  nameColumns();
  compare.drafts($("compare-student").value, $("compare-teacher").value);
});
$("compare-stop").addEventListener("click", () => compare.stop());
$("turn-stop").addEventListener("click", () => story.stop());
$("turn-retry").addEventListener("click", () => story.retry());
$("turn-undo").addEventListener("click", () => story.undo());
$("story-new").addEventListener("click", () => story.begin());
$("story-before").addEventListener("click", () => story.bringBack());
$("story-write").addEventListener("click", () => {
  show("write");
  const marks = [];
  let text = "";
  for (const turn of story.told) {
    const start = text.length;
    text += turn.text;
    if (turn.by === "model") marks.push({ start, end: text.length, model: turn.model });
  }
  put({ text, marks });
});

function nameColumns() {
  $("student-name").textContent = $("compare-student").value;
  $("teacher-name").textContent = $("compare-teacher").value;
}

// The models.

function fill(found) {
  const causal = found.filter(({ does }) => does === "text-generation");
  for (const select of document.querySelectorAll("select.models")) {
    select.replaceChildren(...causal.map(({ name }) => new Option(name, name)));
  }
  if (!causal.some(({ name }) => name === settings.model)) settings.model = causal[0]?.name ?? null;
  const bySize = causal.toSorted((a, b) => a.parameters - b.parameters);
  $("compare-student").value = bySize[0]?.name;
  $("compare-teacher").value = bySize.at(-1)?.name;
  const encoders = found.filter(canDo);
  $("tab-tasks").hidden = !encoders.length;
  $("tasks").replaceChildren(...encoders.map((model) => taskForm(model, { say, failed })));
  for (const tab of tabs.slice(0, 4)) tab.hidden = !causal.length;
  if (!causal.length) show("tasks");
  $("compare-draft").disabled = causal.length < 2;
  bind($("settings-form"), (name) => {
    if (name === "theme") useTheme();
    if (name === "model") showLimits(found);
  });
  showLimits(found);
}

function showLimits(found) {
  const model = found.find(({ name }) => name === settings.model) ?? found[0];
  const size = (model.parameters / 1e6).toFixed(1);
  const note = model.limits || "Its card says nothing of its limits; what it writes may be false, unfair or offensive.";
  $("limits").textContent =
    `${model.name}, ${size} M parameters, ${model.precision}. ${note.replaceAll(/\s*\n-?\s*/g, " ").replace(/^- /, "")}`;
}

function useTheme() {
  document.documentElement.dataset.theme = settings.theme;
}

async function start() {
  useTheme();
  const own = kept() ?? { text: "", marks: [] };
  writer.open(own);
  tellDamage(own);
  const { length } = writer.manuscript.text;
  writer.textarea.setSelectionRange(length, length);
  showCounts();
  showBefore();
  await openLink();
  await loadModels();
}

async function openLink() {
  if (!isLink()) return;
  const linked = await fromLink();
  history.replaceState(null, "", location.pathname);
  if (!linked) return tell("This link is damaged: its text cannot be read.");
  show("write");
  put(linked);
  say("The text of the link. Your own is kept.");
}

async function loadModels() {
  try {
    fill(await models(() => say("The models are being loaded…")));
    say("Ready.");
  } catch (error) {
    failed(error, loadModels);
  }
}

addEventListener("hashchange", openLink);
addEventListener("pagehide", () => keeping && keepNow());
document.addEventListener("visibilitychange", () => keeping && keepNow());
start();
