// A student beside its teacher: continuations of one text, with one seed and the same settings.

import { lastPart } from "./manuscript.js";
import { stream } from "./server.js";
import { sampling } from "./settings.js";
import { Stoppable } from "./stoppable.js";

const MAX_CHARACTERS = 20_000;

export class Compare {
  constructor({ student, teacher, agreement, draft, stopButton }, { announce, onError, textBefore }) {
    this.student = student; // {text, facts}
    this.teacher = teacher;
    this.agreement = agreement;
    this.draft = draft; // {section, text, facts}
    this.work = new Stoppable(stopButton, onError);
    this.announce = announce;
    this.textBefore = textBefore;
  }

  async run(student, teacher) {
    await this.work.run(async (signal) => {
      this.agreement.textContent = "";
      const text = lastPart(this.textBefore(), MAX_CHARACTERS);
      const request = { text, ...sampling(), max_new_tokens: Math.max(40, sampling().max_new_tokens) };
      const generated = await this.#generate(this.student, student, request, signal);
      await this.#generate(this.teacher, teacher, request, signal);
      await this.#showAgreement(teacher, text, generated, signal);
    }, () => this.run(student, teacher));
  }

  // How many of the student's tokens are the teacher's top choice.
  async #showAgreement(teacher, textBefore, generated, signal) {
    const scored = [];
    const body = { model: teacher, text: textBefore + generated };
    for await (const { tokens } of stream("/editor/surprisal", body, signal)) scored.push(...tokens);
    const newTokens = scored.filter(({ end }) => end > textBefore.length);
    if (signal.aborted || !newTokens.length) return;
    const same = newTokens.filter(({ rank }) => rank === 0).length;
    const percent = Math.round((100 * same) / newTokens.length);
    this.agreement.textContent =
      `${same} of the student's ${newTokens.length} tokens (${percent} %) are ${teacher}'s top choice.`;
  }

  // The teacher alone, then with speculative decoding: the same distribution, sooner.
  async runSpeculative(student, teacher) {
    await this.work.run(async (signal) => {
      const { draft } = this;
      draft.section.hidden = false;
      draft.text.replaceChildren();
      draft.text.dataset.model = teacher;
      draft.facts.replaceChildren();
      const text = lastPart(this.textBefore(), MAX_CHARACTERS);
      const request = { text, ...sampling(), max_new_tokens: Math.max(40, sampling().max_new_tokens) };
      const alone = { text: document.createElement("p"), facts: document.createElement("dl") };
      await this.#generate(alone, teacher, request, signal);
      const started = performance.now(); // end to end, as for the teacher alone
      for await (const event of stream("/editor/draft", { ...request, student, teacher }, signal)) {
        if (signal.aborted) return;
        if ("text" in event) this.#addPiece(event);
        else this.#showDraftFacts(event, (performance.now() - started) / 1000, alone.seconds);
      }
    }, () => this.runSpeculative(student, teacher));
  }

  #addPiece({ text, drafted }) {
    const piece = document.createElement(drafted ? "mark" : "span");
    if (drafted) piece.className = "drafted";
    piece.textContent = text;
    this.draft.text.append(piece);
  }

  #showDraftFacts({ num_accepted, num_drafted, num_rounds }, seconds, alone) {
    const percent = num_drafted ? Math.round((100 * num_accepted) / num_drafted) : 0;
    facts(this.draft.facts, {
      "Drafts accepted": `${num_accepted} of ${num_drafted} (${percent} %), in ${num_rounds} rounds`,
      "With drafts": `${seconds.toFixed(2)} s`,
      "Teacher alone": `${alone.toFixed(2)} s`,
      "Speed-up": `${(alone / seconds).toFixed(2)} ×`,
    });
    this.announce(`Done: ${percent} % of the drafted tokens were accepted.`);
  }

  async #generate(column, model, request, signal) {
    const started = performance.now();
    let first = null;
    let count = 0;
    let generated = "";
    column.text.textContent = "";
    column.text.dataset.model = model;
    // Without token healing, which drafts do not have either: all three solve one task.
    const body = { ...request, model, num_suggestions: 1, token_healing: false };
    for await (const { text, finish_reason } of stream("/editor/suggestions", body, signal)) {
      first ??= performance.now() - started;
      if (finish_reason === undefined) count += 1;
      generated += text;
      column.text.textContent = generated;
    }
    column.seconds = (performance.now() - started) / 1000;
    if (first !== null) {
      facts(column.facts, {
        "First token": `${Math.round(first)} ms`,
        Speed: `${(count / column.seconds).toFixed(0)} tokens/s`,
      });
    }
    return generated;
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
