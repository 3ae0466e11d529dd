// A story in turns: what the player does or says, and what the model continues with.

import { lastPart } from "./manuscript.js";
import { Turns } from "./turns.js";

const MAX_CHARACTERS = 6_000; // of the story, in a request
const TURN_TOKENS = 60;
const FORMS = {
  do: (words) => `\n> You ${words}\n`,
  say: (words) => `\n> You say "${words}"\n`,
  story: (words) => `\n${words}`,
};

export class Story extends Turns {
  constructor(elements, handlers) {
    super("stillhouse.story", elements, handlers);
  }

  submit(words) {
    this.add(words && FORMS[this.form.elements.turn.value](words));
  }

  // The pinned text stays in front of the story, which is truncated to make room.
  request(history) {
    const story = lastPart(history.map(({ text }) => text).join("").trim(), MAX_CHARACTERS);
    const text = history.at(-1)?.by === "you" ? `${story}\n` : story;
    const memory = this.pinned.value.trim();
    const body = { text, max_new_tokens: TURN_TOKENS, stop: ["\n>"], num_suggestions: 1 };
    return { path: "/editor/suggestions", body: { ...body, ...(memory && { pinned: `${memory}\n` }) } };
  }
}
