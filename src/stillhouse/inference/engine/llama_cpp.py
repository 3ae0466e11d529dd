"""llama.cpp as the engine of a GGUF file, in place of the engine of this package.

The weights stay as they are in the file, and llama.cpp batches requests itself. It chooses tokens,
and nothing else: prompts are tokenized here, and what of the tokens is text, and where a text ends,
is decided as for the engine of this package.

It gives no log-probabilities of prompts, no hidden states, and no logits to draft with: those are
refused. A seed repeats a text only in the same batch and with the same part of its prompt in the
slot's cache, since llama.cpp's rounding depends on both.
"""

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from tokenizers.pre_tokenizers import ByteLevel

from stillhouse.errors import DataError, ModelError, RecipeError, ResourceError, StillhouseError
from stillhouse.inference.causal_lm import MAX_LENGTH, CausalLM
from stillhouse.inference.engine.batcher import (
    Ended,
    Failed,
    Listener,
    NewToken,
    PrefillDone,
    Reason,
    Request,
    RequestHandle,
    ScoredToken,
    check_request,
)
from stillhouse.inference.engine.text_stream import TextStream
from stillhouse.inference.loaded import OtherKind
from stillhouse.models.from_gguf.agreement import Reference
from stillhouse.models.from_gguf.file import read_header
from stillhouse.models.from_gguf.read import described
from stillhouse.models.hub import gguf_file
from stillhouse.models.llama_cpp import LlamaCpp
from stillhouse.models.load import empty_model

SLOTS = 4  # sequences at once, at most; each has keys and values for the whole context
POLL_SECONDS = 0.05
SAMPLERS = ("penalties", "temperature", "top_k", "top_p", "min_p", "typ_p")  # in our order
LAST_SEED = 2**32 - 1  # means a random one
BYTES = ByteLevel(add_prefix_space=False, use_regex=False)  # the alphabet of GGUF's tokens
ADVICE = "Omit --engine, or give another model for it."


class LlamaCppLM(CausalLM):
    """The model of a GGUF file, run by llama.cpp. Its `model` has a configuration, and no weights.

    Attributes:
        path: The file.
        precision: The type of most weights, such as Q4_1.
    """

    features: Any = OtherKind()

    def __init__(self, path: Path, num_slots: int = 1, max_length: int = MAX_LENGTH) -> None:
        """Load a file.

        Args:
            num_slots: Sequences that are generated at once, at most `SLOTS`.

        Raises:
            ModelError: a file that cannot be read, or whose tokens are not those of llama.cpp.
        """
        header = read_header(path)
        config, tokenizer = described(header)
        super().__init__(empty_model(config), tokenizer, max_length)
        slots = min(num_slots, SLOTS)
        self._engine = LlamaCpp(path, self.context, exact=False, num_slots=slots)
        Reference(header, self._engine).check_tokens(tokenizer)
        self.path, self.precision = path, header.main_kind

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens at which llama.cpp ends a text."""
        return self._engine.end_ids

    def batcher(self, num_slots: int) -> "LlamaCppBatcher":
        """A batcher for this file; it generates as many sequences at once as were given at load."""
        return LlamaCppBatcher(self, self._engine)

    def slots(self, num_slots: int) -> NoReturn:
        """Raises:
        RecipeError: always; there are no logits.
        """
        raise RecipeError(f"llama.cpp gives no logits, which drafts need. {ADVICE}")


def load_llama_cpp(name: str, num_slots: int = 1) -> LlamaCppLM:
    """A GGUF file, a folder whose only weights it is, or `smollm2`, with llama.cpp as its engine.

    Raises:
        ModelError: another kind of model, or see `LlamaCppLM`.
    """
    file = gguf_file(name)
    if file is None:
        raise ModelError(
            f"--engine llama.cpp runs GGUF files; {name} is not one. Write one with "
            "`stillhouse export MODEL DIR --to gguf`, or omit --engine."
        )
    return LlamaCppLM(file, num_slots)


@dataclass(eq=False)
class _Work:
    """A request.

    Attributes:
        not_first: The tokens that its prefix excludes, for all its sequences.
        has_begun: Its prompt was read.
    """

    handle: RequestHandle
    not_first: "list[Bias]"
    has_begun: bool = False


@dataclass(eq=False)
class _Sequence:
    """One continuation of a request; what still comes for one that is closed is dropped."""

    work: _Work
    number: int
    stream: TextStream = field(init=False)
    is_closed: bool = False


Arrived = ScoredToken | Exception | Reason  # a token, an error, or why the text ended
Arrival = tuple[_Sequence, Arrived]
Bias = tuple[int, Literal[False]]  # excludes a token, in llama.cpp's form


class LlamaCppBatcher:
    """Answers requests by llama.cpp; see `RequestBatcher`.

    Each running sequence has a thread that reads its tokens; events are sent by `step`.
    """

    def __init__(self, lm: CausalLM, engine: LlamaCpp) -> None:
        self._lm, self._engine = lm, engine
        self._lock = threading.Lock()
        self._waiting: deque[_Sequence] = deque()
        self._sequences: list[_Sequence] = []
        self._arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._unused = _excluded(lm.unused_ids)
        self.num_generated = 0

    def submit(self, request: Request, listener: Listener) -> RequestHandle:
        """Queue a request; `step` calls the listener with its events; raises as `check` does."""
        self.check(request)
        not_first: list[Bias] = []
        if request.prefix is not None:
            rows = range(self._lm.model.config.vocab_size)
            not_first = _excluded(set(rows).difference(request.prefix.ids))
        work = _Work(RequestHandle(request, listener), not_first)
        numbers = range(request.settings.num_return_sequences)
        with self._lock:
            self._waiting += [_Sequence(work, number) for number in numbers]
        return work.handle

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, of which no sequence runs."""
        with self._lock:
            return sum(each.number == 0 for each in self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that llama.cpp runs."""
        return len(self._sequences)

    @property
    def num_slots(self) -> int:
        """Sequences that llama.cpp runs at once."""
        return self._engine.num_slots

    @property
    def num_free(self) -> int:
        """Sequences that could start now."""
        return self.num_slots - len(self._sequences)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not (self._waiting or self._sequences)

    def share(self, ids: Sequence[int]) -> None:
        """Nothing to do: llama.cpp keeps what a slot has read, and reads on from there."""

    def check(self, request: Request) -> None:
        """Reject a request that cannot be answered.

        Raises:
            DataError: see `check_request`; or log-probabilities of the prompt.
            RecipeError: beam search.
        """
        check_request(request, self._lm.context, self._lm.num_ids)
        if request.settings.num_beams > 1:
            raise RecipeError(f"llama.cpp has no beam search. {ADVICE}")
        if request.echo:
            raise DataError(f"llama.cpp gives no log-probabilities of a prompt. {ADVICE}")

    def step(self) -> None:
        """Start sequences that fit, and send the events that have come, if any come soon."""
        for each in [each for each in self._sequences if each.work.handle.is_cancelled]:
            self._close(each)
        with self._lock:
            waiting = (each for each in self._waiting if not each.work.handle.is_cancelled)
            self._waiting = deque(waiting)
            while self._waiting and self.num_free > 0:
                self._start(self._waiting.popleft())
        try:
            arrival = self._arrivals.get(timeout=POLL_SECONDS)
            while True:
                self._take(*arrival)
                arrival = self._arrivals.get_nowait()
        except queue.Empty:
            return

    def run(self) -> None:
        """Step until every submitted request is answered; an error or Ctrl+C ends the others."""
        try:
            while not self.is_idle:
                self.step()
        finally:
            for each in list(self._sequences):
                self._close(each)

    def abandon(self, error: StillhouseError) -> None:
        """Fail all requests with this error."""
        with self._lock:
            works = dict.fromkeys(each.work for each in (*self._waiting, *self._sequences))
            self._waiting.clear()
        for each in list(self._sequences):
            self._close(each)
        for work in works:
            work.handle.on_event(Failed(error))

    def _start(self, sequence: _Sequence) -> None:
        request = sequence.work.handle.request
        known = request.prefix.text if request.prefix else ""
        stop, ids = request.settings.stop, request.prompt_ids
        sequence.stream = TextStream(self._lm.tokenizer, ids, stop, known)
        self._sequences.append(sequence)
        threading.Thread(target=self._read, args=(sequence,), daemon=True).start()

    def _read(self, sequence: _Sequence) -> None:
        """In a thread: the tokens of a sequence, until it ends or nobody wants it."""
        try:
            with closing(self._tokens(sequence.work, sequence.number)) as tokens:
                for found in tokens:
                    self._arrivals.put((sequence, found))
                    if sequence.is_closed:
                        return
        except Exception as error:  # whatever it is, the request has to be answered
            self._arrivals.put((sequence, error))

    def _tokens(self, work: _Work, number: int) -> Generator[ScoredToken | Reason, None, None]:
        """The tokens of a sequence, and why it ended; where there is a prefix, the first token
        starts with it."""
        request = work.handle.request
        ids, left = list(request.prompt_ids), request.settings.max_new_tokens
        if request.prefix is not None and left:
            body = _body(request, number, ids, 1, work.not_first)
            first = self._engine.post("/completion", body)
            if "error" in first:
                raise ResourceError(first["error"]["message"])
            yield ScoredToken(first["tokens"][0])
            ids, left = ids + first["tokens"], left - 1
        if not left:
            yield "length"
            return
        body = _body(request, number, ids, left, self._unused)
        with closing(self._engine.stream(body)) as chunks:
            yield from self._tokens_of(chunks, request.num_top_logprobs)

    def _tokens_of(
        self, chunks: Iterator[dict[str, Any]], num_top_logprobs: int | None
    ) -> Iterator[ScoredToken | Reason]:
        """The tokens of llama.cpp's chunks, with their log-probabilities if they were requested;
        at last why it stopped.

        A chunk has a token, and the text since the chunk before it. Tokens that end inside a
        character have no chunk, but are counted: in their place comes a spelling, of as many
        tokens, of what of the text comes before the token. (They have no log-probability; at the
        very end of a text they are lost.)

        Raises:
            ResourceError: llama.cpp reports an error or stops answering, or that text has no such
                spelling, since the tokens make no whole character.
        """
        num_known = 0
        for chunk in chunks:
            if "error" in chunk:
                raise ResourceError(str(chunk["error"].get("message", chunk["error"])))
            for id in chunk["tokens"]:
                num_hidden = chunk["tokens_predicted"] - num_known - 1
                if num_hidden and id not in self._lm.end_ids:
                    text = "".join(name for name, _ in BYTES.pre_tokenize_str(chunk["content"]))
                    last = str(self._lm.tokenizer.convert_ids_to_tokens(id))
                    found = _spelled(text.removesuffix(last), num_hidden, self._lm.token_ids)
                    if found is None:
                        raise ResourceError(
                            f"it wrote bytes that are no character ({chunk['content']!r}). Try "
                            "another seed, or omit --engine."
                        )
                    yield from map(ScoredToken, found)
                num_known = chunk["tokens_predicted"]
                yield (
                    ScoredToken(id)
                    if num_top_logprobs is None
                    else _scored(chunk, num_top_logprobs)
                )
            if chunk.get("stop"):
                yield "length" if chunk["stop_type"] == "limit" else "stop"
                return
        raise ResourceError("it stopped within a text.")

    def _take(self, sequence: _Sequence, found: Arrived) -> None:
        """Send the events of what arrived."""
        work, handle = sequence.work, sequence.work.handle
        if sequence.is_closed or handle.is_cancelled:
            return
        if isinstance(found, Exception):
            handle.is_cancelled = True  # which closes its other sequences
            handle.on_event(Failed(ResourceError(f"llama.cpp failed: {found}")))
            return
        if not work.has_begun:
            work.has_begun = True
            handle.on_event(PrefillDone(()))
        if not isinstance(found, ScoredToken):
            self._end(sequence, found)
            return
        self.num_generated += 1
        is_end = found.id in self._lm.end_ids
        text = "" if is_end else sequence.stream.push(found.id)
        handle.on_event(NewToken(sequence.number, found, text))
        if is_end or sequence.stream.stopped:
            self._end(sequence, "stop")
        elif handle.is_late:
            self._end(sequence, "time")

    def _end(self, sequence: _Sequence, reason: Reason) -> None:
        rest = sequence.stream.finish()
        if sequence.stream.stopped:
            reason = "stop"
        self._close(sequence)
        sequence.work.handle.on_event(Ended(sequence.number, rest, reason))

    def _close(self, sequence: _Sequence) -> None:
        sequence.is_closed = True
        self._sequences.remove(sequence)


def _body(
    request: Request, number: int, ids: Sequence[int], num_new: int, biases: Sequence[Bias]
) -> dict[str, Any]:
    """A request in the form of llama.cpp's own route: the sequence of this number, after `ids`."""
    settings = request.settings
    body: dict[str, Any] = {
        "prompt": list(ids),
        "n_predict": num_new,
        "samplers": SAMPLERS,
        "temperature": 0 if settings.greedy else settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "min_p": settings.min_p,
        "typical_p": settings.typical_p,
        "repeat_penalty": settings.repetition_penalty,
        "repeat_last_n": len(ids) + num_new,  # the whole text
        "seed": (request.seed + number) % LAST_SEED,
        "logit_bias": biases,
        "return_tokens": True,
    }
    if request.num_top_logprobs is not None:
        body["n_probs"] = max(1, request.num_top_logprobs)
    return body


def _excluded(ids: Iterable[int]) -> list[Bias]:
    return [(id, False) for id in ids]


def _spelled(text: str, number: int, vocabulary: Mapping[str, int]) -> list[int] | None:
    """This number of tokens that are this text together, the first as long as it can be."""
    if number == 1:
        return [vocabulary[text]] if text in vocabulary else None
    for end in range(len(text) - number + 1, 0, -1):
        if text[:end] in vocabulary:
            rest = _spelled(text[end:], number - 1, vocabulary)
            if rest is not None:
                return [vocabulary[text[:end]], *rest]
    return None


def _scored(chunk: Mapping[str, Any], num_top_logprobs: int) -> ScoredToken:
    """The token of a chunk with its log-probability and those of the most likely ones."""
    (own,) = chunk["completion_probabilities"]
    best = [(each["id"], each["logprob"]) for each in own["top_logprobs"]]
    rank = next((at for at, (id, _) in enumerate(best) if id == own["id"]), None)
    return ScoredToken(own["id"], own["logprob"], rank, tuple(best[:num_top_logprobs]))
