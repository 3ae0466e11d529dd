// A conversation with a model, in its own chat template.

import { Turns } from "./turns.js";

const ANSWER_TOKENS = 256;

export class Chat extends Turns {
  constructor(elements, handlers) {
    super("stillhouse.chat", elements, handlers);
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
  }

  request(history) {
    const messages = history.map(({ by, text }) => ({ role: by === "you" ? "user" : "assistant", content: text }));
    if (!messages.length) return null;
    const instructions = this.pinned.value.trim();
    if (instructions) messages.unshift({ role: "system", content: instructions });
    return { path: "/editor/chat", body: { messages, max_new_tokens: ANSWER_TOKENS } };
  }
}
