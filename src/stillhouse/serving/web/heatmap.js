// The surprisal or rank of each token of a text under a model, with the most likely tokens.

import { stream } from "./server.js";
import { Stoppable } from "./stoppable.js";

const BITS = 1 / Math.LN2;
// Upper bounds of the color steps, with their labels.
const SCALES = {
  surprisal: {
    measure: (token) => -token.log_probability * BITS,
    steps: [[1, "under 1 bit"], [3, "1 to 3"], [6, "3 to 6"], [10, "6 to 10"], [Infinity, "over 10 bits"]],
  },
  rank: {
    measure: (token) => token.rank,
    steps: [[1, "top 1"], [10, "top 10"], [100, "top 100"], [1000, "top 1,000"], [Infinity, "below"]],
  },
};

export class HeatMap {
  constructor({ text, detail, legend, summary, stopButton }, { announce, onError, continueFrom }) {
    this.text = text;
    this.detail = detail;
    this.legend = legend;
    this.summary = summary;
    this.work = new Stoppable(stopButton, onError);
    this.source = null; // the scored text
    this.model = null;
    this.announce = announce;
    this.continueFrom = continueFrom;
    this.by = "surprisal";
    this.tokens = [];
    this.active = -1;
    this.text.addEventListener("keydown", (event) => this.#key(event));
    this.text.addEventListener("pointerover", ({ target }) => this.#point(target));
    this.text.addEventListener("click", ({ target }) => {
      this.#point(target);
      if (this.active >= 0 && target !== this.text) this.#continueFrom();
    });
    this.text.addEventListener("focus", () => this.active < 0 && this.show(0));
    this.colorBy("surprisal");
  }

  async score(source, model) {
    this.work.stop();
    this.source = source;
    this.tokens = [];
    this.active = -1;
    this.text.replaceChildren();
    this.detail.replaceChildren();
    if (!source.trim()) {
      this.summary.textContent = "There is no text to score yet; write something first.";
      return;
    }
    this.summary.textContent = "Scoring…";
    const isLast = await this.work.run(async (signal) => {
      const body = { model, text: source };
      for await (const { tokens } of stream("/editor/surprisal", body, signal)) this.#add(tokens);
      if (!signal.aborted) this.announce(this.summary.textContent, { quietly: true });
    }, () => this.score(source, model));
    if (isLast && this.source === source && !this.tokens.length) this.summary.textContent = "No text was scored.";
  }

  colorBy(by) {
    this.by = by;
    this.legend.replaceChildren(
      ...SCALES[by].steps.map(([, words], step) => {
        const item = document.createElement("li");
        const swatch = document.createElement("span");
        swatch.className = `token step-${step}`;
        swatch.textContent = "abc";
        item.append(swatch, ` ${words}`);
        return item;
      }),
    );
    for (const [at, token] of this.tokens.entries()) this.#color(this.text.children[at], token);
  }

  #add(tokens) {
    const spans = tokens.map((token) => {
      token.start = this.tokens.at(-1)?.end ?? 0;
      token.text = this.source.slice(token.start, token.end);
      this.tokens.push(token);
      const span = document.createElement("span");
      span.role = "option";
      span.id = `token-${this.tokens.length - 1}`;
      span.ariaSelected = "false";
      span.textContent = token.text;
      if (!token.text.trim()) span.ariaLabel = token.text.includes("\n") ? "line break" : "space";
      this.#color(span, token);
      return span;
    });
    this.text.append(...spans);
    const { length } = this.tokens;
    const topShare = this.tokens.filter(({ rank }) => rank === 0).length / length;
    const total = this.tokens.reduce((sum, token) => sum - token.log_probability, 0);
    this.summary.textContent =
      `${length.toLocaleString("en")} tokens, ${(total * BITS / length).toFixed(2)} bits each ` +
      `(perplexity ${Math.exp(total / length).toFixed(1)}); ${Math.round(100 * topShare)} % are ` +
      "the model's top choice.";
  }

  #color(span, token) {
    const { measure, steps } = SCALES[this.by];
    span.className = `token step-${steps.findIndex(([below]) => measure(token) < below)}`;
  }

  #point(target) {
    if (target.parentNode === this.text) this.show([...this.text.children].indexOf(target));
  }

  show(at) {
    const token = this.tokens[at];
    if (!token) return;
    const { children } = this.text;
    if (children[this.active]) children[this.active].ariaSelected = "false";
    this.active = at;
    children[at].ariaSelected = "true";
    this.text.setAttribute("aria-activedescendant", children[at].id);
    const title = document.createElement("h2");
    title.textContent = `“${token.text.replaceAll("\n", "⏎")}”`;
    const facts = document.createElement("p");
    const odds = Math.round(Math.exp(-token.log_probability));
    facts.textContent =
      `1 in ${odds.toLocaleString("en")}; ${(-token.log_probability * BITS).toFixed(1)} bits; ` +
      `rank ${(token.rank + 1).toLocaleString("en")}`;
    const list = document.createElement("ol");
    list.append(...token.top_logprobs.map((each) => bar(...each, token.text)));
    const button = document.createElement("button");
    button.textContent = "Continue from here";
    button.addEventListener("click", () => this.#continueFrom());
    this.detail.replaceChildren(title, facts, list, button);
  }

  #continueFrom() {
    this.continueFrom(this.tokens[this.active].start);
  }

  #key(event) {
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };
    const last = this.tokens.length - 1;
    if (event.key in moves) this.show(Math.min(Math.max(this.active + moves[event.key], 0), last));
    else if (event.key === "Home") this.show(0);
    else if (event.key === "End") this.show(last);
    else if (event.key === "Enter" && this.active >= 0) this.#continueFrom();
    else return;
    this.text.children[this.active]?.scrollIntoView({ block: "nearest" });
    event.preventDefault();
  }
}

function bar(text, logProbability, chosen) {
  const item = document.createElement("li");
  const probability = Math.exp(logProbability);
  const words = document.createElement("span");
  words.textContent = text.replaceAll("\n", "⏎") || "∅";
  if (text === chosen) words.className = "chosen";
  const meter = document.createElement("span");
  meter.className = "meter";
  meter.style.width = `${100 * probability}%`;
  const share = document.createElement("span");
  share.className = "quiet";
  share.textContent = `${(100 * probability).toFixed(1)} %`;
  item.append(words, share, meter);
  return item;
}
