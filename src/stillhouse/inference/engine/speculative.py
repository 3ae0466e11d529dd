"""Speculative decoding: a student drafts for its teacher, who reads the draft in one step.

With p the teacher's distribution of the next token and q the student's, a drafted token x is
accepted with probability min(1, p(x) / q(x)); in place of the first that is not, one is drawn from
the normalized max(p - q, 0). What comes out is distributed as the teacher's own text (Leviathan et
al. 2023, section 2.3 and appendix A.1; Chen et al. 2023); greedy, it is the teacher's own text. The
probability that a token is accepted, the sum over the vocabulary of min(p, q), says how far the two
agree.

Axes: C tokens that may follow, R rows of logits, V vocabulary.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.errors import ModelError, RecipeError
from stillhouse.inference.engine.batcher import NotFiniteError, Request, are_finite
from stillhouse.inference.engine.kv_cache import Chunk, Slot, SlottedModel
from stillhouse.inference.engine.sampling import Candidates, candidates, uniform_at
from stillhouse.inference.engine.text_stream import TextStream
from stillhouse.inference.generation import Generation
from stillhouse.inference.loaded import LoadedModel

DRAFT, ACCEPT, CORRECT = range(3)  # what a random number is for


@dataclass(frozen=True)
class Verified:
    """A new token, and whether the student drafted it."""

    id: int
    is_drafted: bool


class Speculation:
    """A teacher and the student that drafts for it; counts what was drafted and accepted."""

    def __init__(self, teacher: SlottedModel, student: SlottedModel, num_drafted: int = 4) -> None:
        """Args: num_drafted: Tokens that the student drafts at a time.

        Raises:
            ModelError: their vocabularies differ.
        """
        sizes = [each.num_tokens for each in (teacher, student)]
        if sizes[0] != sizes[1]:
            raise ModelError(
                f"The teacher has {sizes[0]:,} tokens and the student {sizes[1]:,}; a student can "
                "draft only with its teacher's tokenizer."
            )
        self._teacher, self._student = teacher, student
        self._num_drafted = num_drafted
        self.num_drafted = 0
        self.num_accepted = 0
        self.num_rounds = 0

    @property
    def acceptance(self) -> float | None:
        """The share of drafted tokens that the teacher kept."""
        return self.num_accepted / self.num_drafted if self.num_drafted else None

    def generate(
        self, prompt_ids: Sequence[int], settings: Generation, seed: int, end_ids: frozenset[int]
    ) -> Generator[Verified, None, None]:
        """New tokens as the teacher settles them; the last may be one that ends the text.

        The prompt and the new tokens must fit both contexts.
        """
        ids = list(prompt_ids)
        places = self._teacher.open(), self._student.open()
        try:
            while (left := len(prompt_ids) + settings.max_new_tokens - len(ids)) > 0:
                for token in self._round(ids, len(prompt_ids), places, settings, seed)[:left]:
                    ids.append(token.id)
                    yield token
                    if token.id in end_ids:
                        return
        finally:
            self._teacher.close(places[0])
            self._student.close(places[1])

    def _round(
        self,
        ids: Sequence[int],
        num_prompt: int,
        places: tuple[Slot, Slot],
        settings: Generation,
        seed: int,
    ) -> list[Verified]:
        """Draft, read, accept: at least one new token, at most one more than is drafted."""
        room = num_prompt + settings.max_new_tokens - len(ids) - 1
        count = min(self._num_drafted, room)
        drafted, guesses = self._draft(ids, count, places[1], settings, (seed, num_prompt))
        known = places[0].length
        unread = [*ids[known:], *drafted]
        logits = _read(self._teacher, Chunk(places[0], unread, count + 1))
        accepted: list[Verified] = []
        for number, row in enumerate(logits):
            so_far = [*ids, *drafted[:number]]
            at = len(so_far) - num_prompt
            right = candidates(row, settings, so_far)
            if number == count:
                accepted.append(Verified(right.draw(uniform_at(seed, 0, at, DRAFT)), False))
                break
            token, guess = drafted[number], guesses[number]
            ratio = _probability(right, token) / _probability(guess, token)
            if uniform_at(seed, 0, at, ACCEPT) < ratio:
                accepted.append(Verified(token, True))
                continue
            rest = _difference(right, guess)
            accepted.append(Verified(rest.draw(uniform_at(seed, 0, at, CORRECT)), False))
            break
        num_accepted = sum(token.is_drafted for token in accepted)
        for place in places:
            place.length = min(place.length, len(ids) + num_accepted)
        self.num_drafted += count
        self.num_accepted += num_accepted
        self.num_rounds += 1
        return accepted

    def _draft(
        self,
        ids: Sequence[int],
        count: int,
        place: Slot,
        settings: Generation,
        seed_and_prompt: tuple[int, int],
    ) -> tuple[list[int], list[Candidates]]:
        seed, num_prompt = seed_and_prompt
        drafted: list[int] = []
        guesses: list[Candidates] = []
        for _ in range(count):
            so_far = [*ids, *drafted]
            (row,) = _read(self._student, Chunk(place, so_far[place.length :]))
            guesses.append(candidates(row, settings, so_far))
            at = len(so_far) - num_prompt
            drafted.append(guesses[-1].draw(uniform_at(seed, 0, at, DRAFT)))
        return drafted, guesses


class DraftedText:
    """What follows a prompt by the teacher, the student drafting: its pieces as they are settled,
    each with whether it was drafted."""

    def __init__(
        self,
        teacher: LoadedModel,
        student: LoadedModel,
        prompt_ids: tuple[int, ...],
        settings: Generation,
    ) -> None:
        """Raises:
        RecipeError: several sequences, or beams.
        ModelError: models that do not share a vocabulary, or do not continue text.
        DataError: the prompt and the new tokens do not fit.
        """
        if settings.num_return_sequences > 1 or settings.num_beams > 1:
            raise RecipeError(
                "A student drafts one text at a time; ask for one sequence, no beams."
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
    teacher: LoadedModel, student: LoadedModel, prompt: str, settings: Generation
) -> tuple[str, str]:
    """What follows the prompt by the teacher, the student drafting; and, in words, how much of the
    draft was kept.

    Raises:
        RecipeError, ModelError, DataError: see `DraftedText`.
    """
    drafted = DraftedText(teacher, student, teacher.prompt_ids(prompt), settings)
    text = "".join(piece for piece, _ in drafted)
    speculation = drafted.speculation
    kept = (
        f"{speculation.num_accepted} of {speculation.num_drafted} drafted tokens were kept, in "
        f"{speculation.num_rounds} rounds"
    )
    return text, kept


def _read(model: SlottedModel, piece: Chunk) -> Float[Tensor, "R V"]:
    logits = model.read([piece])
    if not are_finite(logits):
        raise NotFiniteError
    return logits


def _probability(of: Candidates, token: int) -> float:
    place = int(torch.searchsorted(of.ids, token))
    found = place < len(of.ids) and int(of.ids[place]) == token
    return float(of.probabilities[place]) if found else 0.0


def _difference(right: Candidates, guess: Candidates) -> Candidates:
    """max(p - q, 0), normalized. (It is not zero everywhere, or the token had been accepted.)"""
    places = torch.searchsorted(guess.ids, right.ids).clamp(max=len(guess.ids) - 1)
    guessed = torch.where(guess.ids[places] == right.ids, guess.probabilities[places], 0.0)
    left = (right.probabilities - guessed).clamp(min=0)
    return Candidates(right.ids, left / left.sum())
