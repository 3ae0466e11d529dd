// A conversation with a model, in its own chat template.

import { Turns } from "./turns.js";

const LAST_TURNS = 200; // that a request has; the server leaves out what its context cannot hold

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
    const messages = [];
    for (const { by, text } of history.slice(-LAST_TURNS)) {
      const role = by === "you" ? "user" : "assistant";
      const last = messages.at(-1);
      // Templates want roles in turn; a message that got no answer becomes a part of the next.
      if (last?.role === role) last.content += `\n\n${text}`;
      else if (last || role === "user") messages.push({ role, content: text });
    }
    if (!messages.length) return null;
    const instructions = this.pinned.value.trim();
    if (instructions) messages.unshift({ role: "system", content: instructions });
    return { path: "/editor/chat", body: { messages, max_new_tokens: undefined } }; // the server's default
  }
}
