"""Speculative decoding: a student drafts tokens, and its teacher verifies a draft in one step.

With p the teacher's distribution of the next token and q the student's, a drafted token x is
accepted with probability min(1, p(x) / q(x)); the first rejected token is replaced by a sample from
the normalized max(p - q, 0). The output has the distribution of the teacher's own text (Leviathan
et al. 2023, section 2.3 and appendix A.1; Chen et al. 2023); greedy, it equals the teacher's text.
The probability of acceptance, the sum over the vocabulary of min(p, q), measures their agreement.

Axes: C candidate tokens, R rows of logits, V vocabulary.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.errors import ModelError, RecipeError
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.chat import Prompt
from stillhouse.inference.engine.batcher import NotFiniteError, Request, are_finite
from stillhouse.inference.engine.kv_cache import Chunk, Slot, SlottedModel
from stillhouse.inference.engine.sampling import Candidates, candidates, uniform_at
from stillhouse.inference.engine.text_stream import TextStream
from stillhouse.inference.generation import Generation

DRAFT, ACCEPT, CORRECT = range(3)  # purposes of random numbers


@dataclass(frozen=True)
class Verified:
    """A new token, and whether the student drafted it."""

    id: int
    is_drafted: bool


@dataclass(frozen=True)
class _Text:
    """What stays the same in all rounds of a text."""

    num_prompt: int
    settings: Generation
    seed: int
    teacher: Slot
    student: Slot


class Speculation:
    """A teacher and the student that drafts for it, with the same vocabulary; counts drafted and
    accepted tokens."""

    def __init__(self, teacher: SlottedModel, student: SlottedModel, num_drafted: int = 4) -> None:
        """Args: num_drafted: Tokens of a draft."""
        self._teacher, self._student = teacher, student
        self._num_drafted = num_drafted
        self.num_drafted = 0
        self.num_accepted = 0
        self.num_rounds = 0

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted tokens over drafted tokens; None before the first draft."""
        return self.num_accepted / self.num_drafted if self.num_drafted else None

    def generate(
        self, prompt_ids: Sequence[int], settings: Generation, seed: int, end_ids: frozenset[int]
    ) -> Generator[Verified, None, None]:
        """New tokens as the teacher verifies them; the last may be an end-of-text token.

        The prompt and the new tokens must fit both contexts.
        """
        ids = list(prompt_ids)
        text = _Text(len(ids), settings, seed, self._teacher.open(), self._student.open())
        try:
            while (left := text.num_prompt + settings.max_new_tokens - len(ids)) > 0:
                for token in self._round(ids, text)[:left]:
                    ids.append(token.id)
                    yield token
                    if token.id in end_ids:
                        return
        finally:
            self._teacher.close(text.teacher)
            self._student.close(text.student)

    def _round(self, ids: Sequence[int], text: _Text) -> list[Verified]:
        """Draft, verify, accept: at least one new token, at most one more than drafted."""
        room = text.num_prompt + text.settings.max_new_tokens - len(ids) - 1
        count = min(self._num_drafted, room)
        drafted, guesses = self._draft(ids, count, text)
        unread = [*ids[text.teacher.length :], *drafted]
        logits = _forward(self._teacher, Chunk(text.teacher, unread, count + 1))
        verified: list[Verified] = []
        for number, row in enumerate(logits):
            so_far = [*ids, *drafted[:number]]
            at = len(so_far) - text.num_prompt
            target, purpose = candidates(row, text.settings, so_far), DRAFT
            if number < count:
                token, guess = drafted[number], guesses[number]
                ratio = _probability(target, token) / _probability(guess, token)
                if uniform_at(text.seed, 0, at, ACCEPT) < ratio:
                    verified.append(Verified(token, True))
                    continue
                target, purpose = _difference(target, guess), CORRECT
            token = target.draw(uniform_at(text.seed, 0, at, purpose))
            verified.append(Verified(token, False))
            break
        num_accepted = sum(token.is_drafted for token in verified)
        for slot in (text.teacher, text.student):
            slot.length = min(slot.length, len(ids) + num_accepted)
        self.num_drafted += count
        self.num_accepted += num_accepted
        self.num_rounds += 1
        return verified

    def _draft(
        self, ids: Sequence[int], count: int, text: _Text
    ) -> tuple[list[int], list[Candidates]]:
        """The student's next tokens, and the distribution that each was drawn from."""
        drafted: list[int] = []
        guesses: list[Candidates] = []
        for _ in range(count):
            so_far = [*ids, *drafted]
            (row,) = _forward(self._student, Chunk(text.student, so_far[text.student.length :]))
            guesses.append(candidates(row, text.settings, so_far))
            at = len(so_far) - text.num_prompt
            drafted.append(guesses[-1].draw(uniform_at(text.seed, 0, at, DRAFT)))
        return drafted, guesses


class DraftedText:
    """The teacher's continuation of a prompt, drafted by the student: pieces of text as they are
    verified, each with whether it was drafted."""

    def __init__(
        self,
        teacher: CausalLM,
        student: CausalLM,
        prompt_ids: tuple[int, ...],
        settings: Generation,
    ) -> None:
        """Raises:
        RecipeError: several sequences, or beam search.
        ModelError: models that do not share a vocabulary, or are not causal.
        DataError: the prompt and the new tokens do not fit.
        """
        if settings.num_return_sequences > 1 or settings.num_beams > 1:
            raise RecipeError(
                "A student drafts one text at a time; ask for one sequence, no beams."
            )
        if teacher.token_ids != student.token_ids:
            raise ModelError(
                f"The teacher has {len(teacher.token_ids):,} tokens and the student "
                f"{len(student.token_ids):,}, not the same ones; a student can draft only with its "
                "teacher's tokenizer. Of a run with student.vocabulary, that is its teacher/."
            )
        self._teacher, self._prompt_ids, self._settings = teacher, prompt_ids, settings
        self._seed = settings.drawn_seed()
        for model in (teacher, student):
            model.batcher(1).check(Request(prompt_ids, settings, self._seed))
        self.speculation = Speculation(teacher.slots(1), student.slots(1))

    def __iter__(self) -> Generator[tuple[str, bool], None, None]:
        ids, settings, end_ids = self._prompt_ids, self._settings, self._teacher.end_ids
        stream = TextStream(self._teacher.tokenizer, ids, settings.stop)
        tokens = self.speculation.generate(ids, settings, self._seed, end_ids)
        with closing(tokens):
            for token in tokens:
                if token.id in end_ids:
                    break
                yield stream.push(token.id), token.is_drafted
                if stream.stopped:
                    break
        yield stream.finish(), False


def continue_by_draft(
    teacher: CausalLM, student: CausalLM, prompt: Prompt, settings: Generation
) -> tuple[str, str]:
    """The teacher's continuation of the prompt, drafted by the student; and a sentence on how much
    of the draft was accepted.

    Raises:
        RecipeError, ModelError, DataError: see `DraftedText`.
    """
    drafted = DraftedText(teacher, student, prompt.ids, prompt.with_stops(settings))
    text = "".join(piece for piece, _ in drafted)
    counts = drafted.speculation
    return text, (
        f"{counts.num_accepted} of {counts.num_drafted} drafted tokens were accepted, in "
        f"{counts.num_rounds} rounds"
    )


def _forward(model: SlottedModel, chunk: Chunk) -> Float[Tensor, "R V"]:
    logits = model.forward([chunk])
    if not are_finite(logits):
        raise NotFiniteError
    return logits


def _probability(of: Candidates, token: int) -> float:
    at = int(torch.searchsorted(of.ids, token))
    return float(of.probabilities[at]) if at < len(of.ids) and of.ids[at] == token else 0.0


def _difference(target: Candidates, guess: Candidates) -> Candidates:
    """max(p - q, 0), normalized. (It is not zero everywhere: then no token would be rejected.)"""
    at = torch.searchsorted(guess.ids, target.ids).clamp(max=len(guess.ids) - 1)
    guessed = torch.where(guess.ids[at] == target.ids, guess.probabilities[at], 0.0)
    left = (target.probabilities - guessed).clamp(min=0)
    return Candidates(target.ids, left / left.sum())
