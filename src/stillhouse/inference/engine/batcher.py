"""Continuous batching: many requests share each step of a model, and come and go between steps.

A step reads one token of every sequence under way and a piece of the prompts that wait. A request
that ends makes room at once; one that arrives joins the next step. What a request gets does not
depend on the others (see `sampling`).

Axes: R rows of logits, V vocabulary.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from stillhouse.errors import DataError, ModelError, StillhouseError
from stillhouse.inference.engine.kv_cache import Chunk, Slot, SlottedModel
from stillhouse.inference.engine.sampling import next_token
from stillhouse.inference.engine.text_stream import TextStream
from stillhouse.inference.engine.token_healing import Beginning
from stillhouse.inference.generation import Generation

PROMPT_TOKENS = 256  # of prompts in one step: what those under way wait for is bounded

Reason = Literal["stop", "length", "time"]


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Attributes:
        seed: What is drawn depends on it; see `Generation.seed`.
        num_likeliest: With each token, the log-probabilities of this many likeliest; None: of none.
        echo: Those of the prompt's tokens too.
        begins: The beginning that the first new token shares with the text before it; it is not
            shown again. See `resume.resumed`.
        max_seconds: From when it is accepted; what there is then is the result.
    """

    prompt_ids: tuple[int, ...]
    settings: Generation
    seed: int
    num_top_logprobs: int | None = None
    echo: bool = False
    begins: Beginning | None = None
    max_seconds: float | None = None


@dataclass(frozen=True)
class ScoredToken:
    """A token, its log-probability in nats (None for the first of all), how many are likelier, and
    the likeliest."""

    id: int
    log_probability: float | None = None
    rank: int | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class PrefillDone:
    """The prompt has been read; its tokens, where they were asked for."""

    tokens: tuple[ScoredToken, ...]


@dataclass(frozen=True)
class NewToken:
    """A sequence has a new token, and text that can be shown (which may be none yet)."""

    sequence: int
    token: ScoredToken
    text: str


@dataclass(frozen=True)
class Ended:
    """A sequence is complete: with the last of its text, and why."""

    sequence: int
    text: str
    reason: Reason


@dataclass(frozen=True)
class Failed:
    """The request cannot be answered; nothing more comes."""

    error: StillhouseError


Event = PrefillDone | NewToken | Ended | Failed
Listener = Callable[[Event], None]


class NotFiniteError(ModelError):
    """The model gave numbers that are none."""

    def __init__(self) -> None:
        super().__init__(
            "The model gives numbers that are not finite for this text; its weights are damaged, "
            "or too large for this precision. Try --precision fp32."
        )


class RequestHandle:
    """A request under way; `cancel` may be called from any thread."""

    def __init__(self, request: Request, listener: Listener) -> None:
        self.request = request
        self.on_event = listener
        self.is_cancelled = False
        self.accepted = time.monotonic()

    def cancel(self) -> None:
        """Nothing more is wanted; its room is free at the next step."""
        self.is_cancelled = True

    @property
    def is_late(self) -> bool:
        limit = self.request.max_seconds
        return limit is not None and time.monotonic() - self.accepted >= limit


@dataclass
class _Sequence:
    """One continuation."""

    ticket: RequestHandle
    number: int
    place: Slot
    stream: TextStream
    new_ids: list[int] = field(default_factory=list)


@dataclass
class _Prompt:
    """A prompt that is being read."""

    ticket: RequestHandle
    place: Slot
    scored: list[ScoredToken] = field(default_factory=list)
    logits: Float[Tensor, "1 V"] | None = None  # after its last token read

    @property
    def num_left(self) -> int:
        return len(self.ticket.request.prompt_ids) - self.place.length


class Batcher:
    """Answers requests with one model, a step at a time.

    `submit` may be called from any thread; `step` from one only.
    """

    def __init__(
        self, model: SlottedModel, tokenizer: PreTrainedTokenizerFast, end_ids: frozenset[int]
    ) -> None:
        """Args: end_ids: Tokens that end a text."""
        self.model = model
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._lock = threading.Lock()
        self._waiting: deque[RequestHandle] = deque()
        self._prompts: list[_Prompt] = []
        self._sequences: list[_Sequence] = []
        self.num_generated = 0

    def submit(self, request: Request, listener: Listener) -> RequestHandle:
        """Take a request; its events reach the listener from within `step`.

        Raises:
            DataError: the prompt is empty, has unknown tokens, or leaves no room.
        """
        self.check(request)
        ticket = RequestHandle(request, listener)
        with self._lock:
            self._waiting.append(ticket)
        return ticket

    @property
    def num_waiting(self) -> int:
        """Requests that no step has begun to read."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that have a place in the model."""
        return len(self._prompts) + len(self._sequences)

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._prompts or self._sequences)

    def step(self) -> None:
        """Admit what there is room for, read one step, and tell what came of it."""
        self._drop_cancelled()
        self._admit()
        pieces = [Chunk(each.place, [each.new_ids[-1]]) for each in self._sequences]
        reading = self._pieces_of_prompts()
        if not pieces and not reading:
            return
        sequences = list(self._sequences)
        logits = self.model.read([*pieces, *(piece for _, piece in reading)])
        ends = logits[len(sequences) :].split([piece.num_logits for _, piece in reading])
        self._choose(sequences, logits[: len(sequences)])
        for (prompt, piece), own in zip(reading, ends, strict=True):
            self._advance(prompt, piece, own)

    def run(self) -> None:
        """Step until all that was submitted is answered."""
        while not self.is_idle:
            self.step()

    def abandon(self, error: StillhouseError) -> None:
        """Give up all requests, telling each of them why."""
        with self._lock:
            tickets = list(self._waiting)
            self._waiting.clear()
        under_way = [*self._prompts, *self._sequences]
        self._prompts, self._sequences = [], []
        self.model.clear()
        for ticket in dict.fromkeys([*tickets, *(each.ticket for each in under_way)]):
            ticket.on_event(Failed(error))

    def check(self, request: Request) -> None:
        """Refuse what cannot be answered.

        Raises:
            DataError: see `submit`.
        """
        num_prompt, num_new = len(request.prompt_ids), request.settings.max_new_tokens
        context = self.model.context
        if num_prompt == 0:
            raise DataError("The prompt has no tokens; give at least one.")
        must_be_known(request.prompt_ids, self.model.num_tokens)
        if num_prompt + num_new > context:
            raise DataError(
                f"The prompt has {num_prompt} tokens and {num_new} new ones are asked for, but the "
                f"model takes {context} in all. Shorten the prompt, or ask for fewer new tokens."
            )
        if request.settings.num_return_sequences > self.model.num_slots:
            raise DataError(
                f"{request.settings.num_return_sequences} sequences are asked for, but there is "
                f"room for {self.model.num_slots} at once; ask for fewer."
            )

    def _drop_cancelled(self) -> None:
        with self._lock:
            self._waiting = deque(each for each in self._waiting if not each.is_cancelled)
        for each in [each for each in self._prompts if each.ticket.is_cancelled]:
            self._prompts.remove(each)
            self.model.close(each.place)
        for each in [each for each in self._sequences if each.ticket.is_cancelled]:
            self._sequences.remove(each)
            self.model.close(each.place)

    def _admit(self) -> None:
        """In the order in which they came; a prompt holds room for all its sequences."""
        held = sum(each.ticket.request.settings.num_return_sequences - 1 for each in self._prompts)
        with self._lock:
            while self._waiting:
                wanted = self._waiting[0].request.settings.num_return_sequences
                if self.model.num_free - held < wanted:
                    break
                self._prompts.append(_Prompt(self._waiting.popleft(), self.model.open()))
                held += wanted - 1

    def _pieces_of_prompts(self) -> list[tuple[_Prompt, Chunk]]:
        pieces, room = [], PROMPT_TOKENS
        for prompt in self._prompts:
            if room == 0:
                break
            start, count = prompt.place.length, min(prompt.num_left, room)
            ids = prompt.ticket.request.prompt_ids[start : start + count]
            wanted = count if prompt.ticket.request.echo else int(count == prompt.num_left)
            pieces.append((prompt, Chunk(prompt.place, ids, wanted)))
            room -= count
        return pieces

    def _advance(self, prompt: _Prompt, piece: Chunk, logits: Float[Tensor, "R V"]) -> None:
        """A piece of a prompt has been read; after the last its sequences begin."""
        if not are_finite(logits):
            self._prompts.remove(prompt)
            self._fail([prompt.place], prompt.ticket)
            return
        request = prompt.ticket.request
        if request.echo:
            before = (
                logits[:-1] if prompt.logits is None else torch.cat([prompt.logits, logits[:-1]])
            )
            if prompt.logits is None:
                prompt.scored.append(ScoredToken(piece.ids[0]))
            ids = piece.ids[len(piece.ids) - len(before) :]
            prompt.scored += _scored(before, ids, request.num_top_logprobs)
            prompt.logits = logits[-1:]
        if prompt.num_left:
            return
        prompt.ticket.on_event(PrefillDone(tuple(prompt.scored)))
        self._begin(prompt, logits[-1:])
        self._prompts.remove(prompt)

    def _begin(self, prompt: _Prompt, logits: Float[Tensor, "1 V"]) -> None:
        request = prompt.ticket.request
        number = request.settings.num_return_sequences
        if request.settings.max_new_tokens == 0:
            for each in range(number):
                prompt.ticket.on_event(Ended(each, "", "length"))
            self.model.close(prompt.place)
            return
        places = [prompt.place, *(self.model.copy(prompt.place) for _ in range(number - 1))]
        begun = [
            _Sequence(
                prompt.ticket,
                each,
                place,
                TextStream(
                    self._tokenizer,
                    request.prompt_ids,
                    request.settings.stop,
                    request.begins.text if request.begins else "",
                ),
            )
            for each, place in enumerate(places)
        ]
        self._sequences += begun
        self._choose(begun, logits.expand(number, -1))

    def _choose(self, sequences: Sequence[_Sequence], logits: Float[Tensor, "R V"]) -> None:
        """The next token of each sequence."""
        if not sequences:
            return
        finite = logits.isfinite().all(-1).tolist() if not are_finite(logits) else None
        for number, (sequence, row) in enumerate(zip(sequences, logits, strict=True)):
            if sequence.ticket.is_cancelled:
                continue
            if finite is not None and not finite[number]:
                self._fail_all_of(sequence.ticket)
                continue
            self._add(sequence, row)

    def _add(self, sequence: _Sequence, logits: Float[Tensor, " V"]) -> None:
        request = sequence.ticket.request
        at = (request.seed, sequence.number, len(sequence.new_ids))
        so_far = (
            [*request.prompt_ids, *sequence.new_ids]
            if request.settings.repetition_penalty != 1
            else ()
        )
        allowed = logits
        if request.begins is not None and not sequence.new_ids:
            allowed = request.begins.only(logits)
        token = next_token(allowed, request.settings, so_far, at)
        sequence.new_ids.append(token)
        self.num_generated += 1
        scored = ScoredToken(token)
        if request.num_top_logprobs is not None:
            (scored,) = _scored(logits[None], [token], request.num_top_logprobs)
        is_end = token in self._end_ids
        text = "" if is_end else sequence.stream.push(token)
        sequence.ticket.on_event(NewToken(sequence.number, scored, text))
        if is_end or sequence.stream.stopped:
            self._end(sequence, "stop")
        elif len(sequence.new_ids) == request.settings.max_new_tokens:
            self._end(sequence, "length")
        elif sequence.ticket.is_late:
            self._end(sequence, "time")

    def _end(self, sequence: _Sequence, reason: Reason) -> None:
        rest = sequence.stream.finish()
        if sequence.stream.stopped:
            reason = "stop"
        self._sequences.remove(sequence)
        self.model.close(sequence.place)
        sequence.ticket.on_event(Ended(sequence.number, rest, reason))

    def _fail_all_of(self, ticket: RequestHandle) -> None:
        own = [each for each in self._sequences if each.ticket is ticket]
        self._sequences = [each for each in self._sequences if each.ticket is not ticket]
        self._fail([each.place for each in own], ticket)

    def _fail(self, places: Sequence[Slot], ticket: RequestHandle) -> None:
        for place in places:
            self.model.close(place, is_finite=False)
        ticket.is_cancelled = True
        ticket.on_event(Failed(NotFiniteError()))


def are_finite(logits: Float[Tensor, "R V"]) -> bool:
    """One pass: a sum is not finite where a term is not."""
    return math.isfinite(float(logits.sum()))


def must_be_known(ids: Sequence[int], num_tokens: int) -> None:
    """Raises:
    DataError: ids that no token has.
    """
    if unknown := [id for id in ids if not 0 <= id < num_tokens]:
        raise DataError(
            f"There are token ids the model does not know: {unknown[:3]}; they go from 0 to "
            f"{num_tokens - 1}."
        )


def _scored(
    logits: Float[Tensor, "R V"], ids: Sequence[int], num_top_logprobs: int | None
) -> list[ScoredToken]:
    """Each token with its log-probability given what is before it, of the model itself (without
    temperature or any other setting)."""
    log_probabilities = logits.log_softmax(-1)
    chosen = log_probabilities.gather(1, torch.tensor(list(ids))[:, None])
    ranks = (log_probabilities > chosen).sum(1).tolist()
    best = log_probabilities.topk(min(num_top_logprobs or 0, logits.shape[1]))
    top_logprobs = [
        tuple(zip(row_ids, row, strict=True))
        for row_ids, row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return [
        ScoredToken(id, value, rank, likely)
        for id, value, rank, likely in zip(
            ids, chosen[:, 0].tolist(), ranks, top_logprobs, strict=True
        )
    ]
