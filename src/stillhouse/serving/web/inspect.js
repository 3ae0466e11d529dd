// What a model's neurons do, and what its layers make of a text.

import { lastPart } from "./manuscript.js";
import { fetchJson } from "./server.js";

const MAX_CHARACTERS = 200;
const COLUMNS = 10; // the last tokens of the text
const STEPS = 4; // of color, as in the heat map
const TIMEOUT_MS = 600_000; // the model reads ten contexts twice, or every layer predicts

export class Inspect {
  constructor({ neuron, strongest, contexts, effects, layers }, { announce, onError, text }) {
    this.neuron = neuron;
    this.strongest = strongest;
    this.contexts = contexts;
    this.effects = effects; // {ablation, direct}
    this.layers = layers;
    this.announce = announce;
    this.onError = onError;
    this.text = text;
  }

  // A button for the strongest neuron of each layer of a model, where its neurons were collected.
  offer({ name, inspected_layers: layers }) {
    this.strongest.replaceChildren(
      ...layers.map(({ strongest }) => {
        const button = document.createElement("button");
        button.textContent = strongest;
        const [layer, number] = strongest.split(".").map(Number);
        button.addEventListener("click", () => this.showNeuron(name, layer, number));
        return button;
      }),
    );
  }

  async showNeuron(model, layer, number) {
    this.announce("Running the model on the neuron’s contexts…");
    try {
      const found = await fetchJson("/editor/neuron", { model, layer, number }, TIMEOUT_MS);
      this.#fill(found);
      this.announce(`Neuron ${found.neuron}: ${found.contexts.length} contexts.`);
    } catch (error) {
      this.announce("");
      this.onError(error, () => this.showNeuron(model, layer, number));
    }
  }

  #fill(found) {
    this.neuron.textContent =
      `Neuron ${found.neuron} on ${found.tokens.toLocaleString("en")} tokens: mean ${found.mean.toPrecision(3)}, ` +
      `standard deviation ${found.standard_deviation.toPrecision(3)}, positive at ${Math.round(100 * found.positive)} %.`;
    this.contexts.replaceChildren(...found.contexts.map(context));
    this.effects.ablation.replaceChildren(...effects(found.ablation));
    this.effects.direct.replaceChildren(
      ...(found.direct.reason ? [`None: ${found.direct.reason}.`] : effects(found.direct)),
    );
  }

  async showLayers(model) {
    const text = lastPart(this.text(), MAX_CHARACTERS);
    if (!text.trim()) return this.announce("There is no text yet; write something first.");
    try {
      this.#table(await fetchJson("/editor/layers", { model, text }, TIMEOUT_MS));
      this.announce("Done.");
    } catch (error) {
      this.onError(error, () => this.showLayers(model));
    }
  }

  // A row for each layer, a column for each of the last tokens: what it predicts there.
  #table({ tokens, layers }) {
    const first = Math.max(0, tokens.length - COLUMNS);
    const head = document.createElement("tr");
    head.append(cell("th", "after"), ...tokens.slice(first).map((token) => cell("th", visible(token))));
    const rows = layers.map(({ layer, top }) => {
      const row = document.createElement("tr");
      const title = cell("th", `layer ${layer}`);
      row.append(title, ...top.slice(first).map(([[word, probability]]) => {
        const prediction = cell("td", visible(word));
        prediction.className = `token step-${Math.min(STEPS, Math.floor(probability * (STEPS + 1)))}`;
        prediction.title = `${(100 * probability).toFixed(1)} %`;
        return prediction;
      }));
      return row;
    });
    this.layers.replaceChildren(head, ...rows);
  }
}

function cell(kind, text) {
  const element = document.createElement(kind);
  element.textContent = text;
  return element;
}

const visible = (text) => text.replaceAll("\n", "⏎") || "∅";

// A text with its tokens colored by activation; the strongest is bold.
function context({ tokens, activations, at, kl }) {
  const item = document.createElement("li");
  const most = Math.abs(activations[at]) || 1;
  item.append(
    ...tokens.map((token, place) => {
      const span = document.createElement("span");
      span.textContent = visible(token);
      const step = Math.min(STEPS, Math.round((STEPS * Math.abs(activations[place])) / most));
      span.className = `token step-${step}`;
      span.title = activations[place].toPrecision(3);
      if (place === at) span.classList.add("strongest");
      return span;
    }),
  );
  const note = document.createElement("small");
  note.className = "quiet";
  note.textContent = ` ${activations[at].toPrecision(3)}; KL ${kl.toPrecision(2)} nats`;
  item.append(note);
  return item;
}

function effects(sides) {
  return ["raised", "lowered"].map((side) => {
    const list = document.createElement("ol");
    list.ariaLabel = side;
    list.append(
      ...sides[side].map(([text, size]) => {
        const item = document.createElement("li");
        const change = `${size > 0 ? "+" : "−"}${Math.abs(size).toPrecision(3)}`;
        item.append(cell("span", visible(text)), cell("span", change));
        return item;
      }),
    );
    return list;
  });
}
