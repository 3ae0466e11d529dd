// A student beside its teacher: the same text to go on from, the same settings, the same seed.

import { lastPart } from "./manuscript.js";
import { stream } from "./server.js";
import { sampling } from "./settings.js";

const READ = 20_000;

export class Compare {
  constructor(elements, { say, failed, before }) {
    Object.assign(this, elements); // student, teacher: {text, facts}; agreement, draft, stopButton
    this.say = say;
    this.failed = failed;
    this.before = before; // the text to go on from
  }

  stop() {
    this.stopping?.abort();
    this.stopButton.hidden = true;
  }

  async run(student, teacher) {
    await this.#work(() => this.run(student, teacher), async (signal) => {
      this.agreement.textContent = "";
      const text = lastPart(this.before(), READ);
      const asked = { text, ...sampling(), tokens: Math.max(40, sampling().tokens) };
      const own = await this.#goOn(this.student, student, asked, signal);
      await this.#goOn(this.teacher, teacher, asked, signal);
      await this.#agree(teacher, student, text, own, signal);
    });
  }

  // Which of the student's words the teacher would have written first.
  async #agree(teacher, student, before, own, signal) {
    const seen = [];
    const body = { model: teacher, text: before + own };
    for await (const { tokens } of stream("/editor/surprisal", body, signal)) seen.push(...tokens);
    const new_ = seen.filter(({ end }) => end > before.length);
    if (signal.aborted || !new_.length) return;
    const same = new_.filter(({ rank }) => rank === 0).length;
    const percent = Math.round((100 * same) / new_.length);
    this.agreement.textContent =
      `Of the student's ${new_.length} tokens, ${same} (${percent} %) are what ${teacher} would ` +
      "have written first.";
  }

  // The teacher alone, then with its student's drafts: the same distribution, sooner.
  async drafts(student, teacher) {
    await this.#work(() => this.drafts(student, teacher), async (signal) => {
      const { draft } = this;
      draft.section.hidden = false;
      draft.text.replaceChildren();
      draft.text.dataset.model = teacher;
      draft.facts.replaceChildren();
      const text = lastPart(this.before(), READ);
      const asked = { text, ...sampling(), tokens: Math.max(40, sampling().tokens) };
      const alone = { text: document.createElement("p"), facts: document.createElement("dl") };
      await this.#goOn(alone, teacher, asked, signal);
      const started = performance.now(); // as for the teacher alone: what the writer waits
      for await (const told of stream("/editor/draft", { ...asked, student, teacher }, signal)) {
        if (signal.aborted) return;
        if ("text" in told) this.#addPiece(told);
        else this.#tellDraft(told, (performance.now() - started) / 1000, alone.seconds);
      }
    });
  }

  #addPiece({ text, drafted }) {
    const piece = document.createElement(drafted ? "mark" : "span");
    if (drafted) piece.className = "drafted";
    piece.textContent = text;
    this.draft.text.append(piece);
  }

  #tellDraft({ num_accepted, num_drafted, num_rounds }, seconds, alone) {
    const percent = num_drafted ? Math.round((100 * num_accepted) / num_drafted) : 0;
    facts(this.draft.facts, {
      "Drafts kept": `${num_accepted} of ${num_drafted} (${percent} %), in ${num_rounds} rounds`,
      "With drafts": `${seconds.toFixed(2)} s`,
      "Teacher alone": `${alone.toFixed(2)} s`,
      "Speed-up": `${(alone / seconds).toFixed(2)} times`,
    });
    this.say(`Done: ${percent} % of the drafted tokens were kept.`);
  }

  async #goOn(column, model, asked, signal) {
    const started = performance.now();
    let first = null;
    let count = 0;
    let own = "";
    column.text.textContent = "";
    column.text.dataset.model = model;
    // Words are not completed, as a draft does not do it either: all three have one task.
    const body = { ...asked, model, number: 1, within_words: false };
    for await (const { text, reason } of stream("/editor/suggestions", body, signal)) {
      first ??= performance.now() - started;
      if (reason === undefined) count += 1;
      own += text;
      column.text.textContent = own;
    }
    column.seconds = (performance.now() - started) / 1000;
    if (first !== null) {
      facts(column.facts, {
        "First token": `${Math.round(first)} ms`,
        Speed: `${(count / column.seconds).toFixed(0)} tokens/s`,
      });
    }
    return own;
  }

  async #work(again, work) {
    this.stop();
    const stopping = new AbortController();
    this.stopping = stopping;
    this.stopButton.hidden = false;
    try {
      await work(stopping.signal);
    } catch (error) {
      if (!stopping.signal.aborted) this.failed(error, again);
    } finally {
      if (this.stopping === stopping) this.stopButton.hidden = true;
    }
  }
}

function facts(list, values) {
  list.replaceChildren(
    ...Object.entries(values).flatMap(([name, value]) => {
      const term = document.createElement("dt");
      const description = document.createElement("dd");
      term.textContent = name;
      description.textContent = value;
      return [term, description];
    }),
  );
}
