// A form for each task model, and its results.

import { fetchJson } from "./server.js";

const TASKS = {
  "fill-mask": {
    title: "Fill the mask",
    fields: [["text", (model) => `The capital of France is ${model.mask_token}.`]],
    inputs: ({ text }) => text,
    show: (result) => bars(result.map(({ sequence, score }) => [sequence, score])),
  },
  "text-classification": {
    title: "Classify",
    fields: [["text", () => "A warm, funny, engaging film."]],
    inputs: ({ text }) => text,
    show: ([result]) => bars(result.map(({ label, score }) => [label, score])),
  },
  "token-classification": {
    title: "Find entities",
    fields: [["text", () => "Ada Lovelace met Charles Babbage in London."]],
    inputs: ({ text }) => text,
    show: (result, { text }) => entities(result, text),
  },
  "question-answering": {
    title: "Answer a question",
    fields: [
      ["question", () => "Who keeps the light?"],
      ["context", () => "The lighthouse is on the northern cape. Old Marten keeps the light."],
    ],
    inputs: ({ question, context }) => ({ question, context }),
    show: ({ answer, score }) => bars([[answer || "(no answer)", score]]),
  },
  "feature-extraction": {
    title: "Compare sentences",
    fields: [
      ["sentence", () => "The sea was rough that night."],
      ["others, one on each line", () => "Waves beat against the shore.\nHe paid the bill and left."],
    ],
    inputs: (values) => ({
      source_sentence: values.sentence,
      sentences: values["others, one on each line"].split("\n").filter((line) => line.trim()),
    }),
    show: (result, _values, inputs) => bars(result.map((score, at) => [inputs.sentences[at], score])),
  },
};

export const hasForm = (model) => model.task in TASKS;

export function taskForm(model, { announce, onError }) {
  const task = TASKS[model.task];
  const article = document.createElement("article");
  article.className = "card";
  const title = document.createElement("h2");
  title.textContent = `${task.title}: ${model.name}`;
  const form = document.createElement("form");
  const fields = task.fields.map(([name, example]) => {
    const label = document.createElement("label");
    label.className = "wide";
    const field = document.createElement("textarea");
    field.name = name;
    field.rows = 2;
    field.value = example(model);
    label.append(name[0].toUpperCase() + name.slice(1), field);
    return label;
  });
  const button = document.createElement("button");
  button.className = "main";
  button.textContent = task.title;
  const answer = document.createElement("div");
  form.append(...fields, button);
  article.append(title, form, answer);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    const values = Object.fromEntries(new FormData(form));
    try {
      const inputs = task.inputs(values);
      const result = await fetchJson(`/models/${encodeURI(model.name)}`, { inputs });
      answer.replaceChildren(task.show(result, values, inputs));
      announce(answer.textContent, { quietly: true });
    } catch (error) {
      onError(error, () => form.requestSubmit());
    } finally {
      button.disabled = false;
    }
  });
  return article;
}

function bars(rows) {
  const list = document.createElement("ol");
  list.append(
    ...rows.map(([text, score]) => {
      const item = document.createElement("li");
      const words = document.createElement("span");
      words.textContent = text;
      const meter = document.createElement("span");
      meter.className = "meter";
      meter.style.width = `${100 * Math.min(1, Math.max(0, score))}%`;
      const share = document.createElement("span");
      share.className = "quiet";
      share.textContent = score.toFixed(3);
      item.append(words, share, meter);
      return item;
    }),
  );
  return list;
}

function entities(result, text) {
  const line = document.createElement("p");
  line.className = "text";
  const letters = [...text]; // the server counts characters, not units of UTF-16
  let at = 0;
  for (const { start, end, entity_group: group } of result) {
    const mark = document.createElement("mark");
    const label = document.createElement("small");
    label.textContent = ` ${group}`;
    mark.append(letters.slice(start, end).join(""), label);
    line.append(letters.slice(at, start).join(""), mark);
    at = end;
  }
  line.append(letters.slice(at).join(""));
  return line;
}
