"""Throughput of text generation, compared with `generate` of transformers in float32.

    python -m benchmarks.generate --save

writes benchmarks/results/generate-KIND.json, KIND being this CPU's type: CPUs with and without AMX
differ in which kernels are fast. Each precision runs on the kernels measured for it.

Shapes of DistilGPT2 and GPT-2 with random weights; greedy, prompts of 32 random tokens, 64 new
ones. Verified first: whether our float32 tokens equal those of transformers, and whether batched
requests get the tokens that they get alone. Then, alternating (A B A B), tokens per second of

- one text: transformers with both shapes, ours in each precision;
- eight texts: one call of transformers, eight requests of ours;
- the first token after a prompt of 80, which must not take longer than float32's;
- sixteen requests that arrive at random (exponential gaps, all within about half the time that one
  takes alone), compared with the same requests one at a time;
- an encoder of DistilBERT's shape, 8 texts of 128 tokens: its last hidden states.

CTranslate2 has no such steps; its throughput with one and eight texts is in
docs/results/experiments.md.
"""

import argparse
import copy
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import DistilBertConfig, DistilBertModel, GPT2Config, GPT2LMHeadModel

from benchmarks import measure
from stillhouse.families.registry import family_of
from stillhouse.inference.engine.batcher import Batcher, Event, NewToken, Request
from stillhouse.inference.engine.kv_cache import SlottedModel
from stillhouse.inference.generation import Generation
from stillhouse.inference.quantization import (
    Precision,
    has_int8,
    onednn_rows,
    speedups,
    times_of,
    to_precision,
)
from stillhouse.kernels import KernelTimes
from stillhouse.tokens.tokenizer_training import train_tokenizer

LAYERS = {"distilgpt2": 6, "gpt2": 12}
TEXTS, LENGTH = 8, 128
PROMPT, NEW, TOGETHER, ARRIVALS = 32, 64, 8, 16
LONG_PROMPT = 80
GREEDY = Generation(greedy=True, max_new_tokens=NEW)
FIRST = Generation(greedy=True, max_new_tokens=1)
RESULTS = Path(__file__).parent / "results"


def make_model(layers: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=layers)).eval()


def prompts(number: int, length: int = PROMPT) -> list[tuple[int, ...]]:
    draw = random.Random(0)
    return [tuple(draw.choices(range(50_000), k=length)) for _ in range(number)]


@torch.inference_mode()
def by_transformers(
    model: Any, asked: Sequence[tuple[int, ...]], new: int = NEW
) -> list[list[int]]:
    """The new tokens of each prompt, all in one call."""
    inputs = torch.tensor(asked)
    output = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=model.config.eos_token_id,
    )
    return output[:, inputs.shape[1] :].tolist()


class Ours:
    """The batcher with a model; texts end at their maximum length only."""

    def __init__(self, model: GPT2LMHeadModel, precision: Precision) -> None:
        own = copy.deepcopy(model)
        to_precision(own, precision, times=times_of(own))
        # Its texts are read by nobody: a tokenizer of bytes will do.
        tokenizer = train_tokenizer("byte_bpe", 257, iter([""]), "causal")
        slots = SlottedModel(family_of(own.config), own, ARRIVALS)
        self._batcher = Batcher(slots, tokenizer, frozenset())

    def __call__(
        self, asked: Sequence[tuple[int, ...]], after: Sequence[float] | None = None
    ) -> list[list[int]]:
        """The new tokens of each prompt; with `after`, each request is submitted that many seconds
        from now, or at the first step after that."""
        found: list[list[int]] = [[] for _ in asked]
        started, next_one = time.perf_counter(), 0
        while next_one < len(asked) or not self._batcher.is_idle:
            now = time.perf_counter() - started
            while next_one < len(asked) and (after is None or after[next_one] <= now):
                self._submit(asked[next_one], found[next_one])
                next_one += 1
            self._batcher.step()
        return found

    def first_token(self, prompt: tuple[int, ...]) -> list[int]:
        """The token after a prompt."""
        found: list[int] = []
        self._submit(prompt, found, FIRST)
        self._batcher.run()
        return found

    def _submit(
        self, prompt: tuple[int, ...], tokens: list[int], settings: Generation = GREEDY
    ) -> None:
        def listen(event: Event) -> None:
            if isinstance(event, NewToken):
                tokens.append(event.token.id)

        self._batcher.submit(Request(prompt, settings, 0), listen)


def measured(
    works: dict[str, Callable[[], Any]], tokens: int, repeats: int
) -> dict[str, dict[str, Any]]:
    """Seconds and tokens per second of each, alternating."""
    seconds = measure.interleaved_seconds(works, repeats=repeats)
    return {
        name: {"seconds": own, "tokens_per_second": tokens / statistics.median(own)}
        for name, own in seconds.items()
    }


def ratio(found: dict[str, dict[str, Any]], name: str, reference: str) -> float:
    """The speedup, the median over rounds."""
    pairs = zip(found[reference]["seconds"], found[name]["seconds"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write every raw number to results/")
    options = parser.parse_args()
    precisions: list[Precision] = ["fp32", "bf16", *(["int8"] if has_int8() else [])]
    models = {name: make_model(layers) for name, layers in LAYERS.items()}
    ours: dict[tuple[str, Precision], Ours] = {
        (name, precision): Ours(model, precision)
        for name, model in models.items()
        for precision in precisions
    }
    console = Console()
    kernels = {name: times_of(model) for name, model in models.items()}
    for name, times in kernels.items():
        console.print(f"{name}: {_kernels_text(times)}")
    equal = _equalities(models, ours)
    console.print(equal)
    results: dict[str, Any] = {}
    for number in (1, TOGETHER):
        asked = prompts(number)
        works: dict[str, Callable[[], Any]] = {
            f"{name}, transformers": partial(by_transformers, model, asked)
            for name, model in models.items()
        }
        works |= {
            f"{name}, {precision}": partial(engine, asked)
            for (name, precision), engine in ours.items()
        }
        results[str(number)] = found = measured(works, number * NEW, options.repeats)
        console.print(_table(found, number))
    results["prompt"] = found = _prompts(models, ours, options.repeats)
    console.print(_table(found, 1, f"first token after a prompt of {LONG_PROMPT}"))
    fastest = ours["distilgpt2", precisions[-1]]
    results["arrivals"] = found = _arrivals(fastest, options.repeats)
    console.print(
        f"{ARRIVALS} requests at random, distilgpt2 in {precisions[-1]}: "
        f"{found['together']['tokens_per_second']:.0f} tokens/s, one after the other "
        f"{found['alone']['tokens_per_second']:.0f}: {ratio(found, 'together', 'alone'):.2f} times"
    )
    results["encoder"] = found = measured(_encoders(precisions), TEXTS * LENGTH, options.repeats)
    for name, own in found.items():
        console.print(
            f"distilbert, {TEXTS} x {LENGTH}, {name}: {own['tokens_per_second']:,.0f} tokens/s, "
            f"{ratio(found, name, 'transformers'):.2f} times"
        )
    if options.save:
        content = {
            "command": " ".join(["python -m benchmarks.generate", *sys.argv[1:]]),
            **measure.environment(),
            "kernels": {name: times.seconds for name, times in kernels.items()},
            "equal": equal,
            "results": results,
        }
        path = RESULTS / f"generate-{measure.cpu_kind()}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _kernels_text(times: KernelTimes) -> str:
    """Measured speedups of the kernels over float32, by rows."""
    found = {each: speedups(times, each) for each in ("bf16", "int8")}
    parts = [
        f"{name} " + (", ".join(f"{own[rows]:.1f}x at {rows}" for rows in own) if own else "no")
        for name, own in found.items()
    ]
    first = onednn_rows(times)
    onednn = "not taken" if first is None else f"from {first} rows"
    return f"{'; '.join(parts)} rows; oneDNN's int8 {onednn}"


def _prompts(
    models: dict[str, Any], ours: dict[tuple[str, Precision], Ours], repeats: int
) -> dict[str, dict[str, Any]]:
    """Time to process a prompt."""
    asked = prompts(1, LONG_PROMPT)
    works: dict[str, Callable[[], Any]] = {
        f"{name}, transformers": partial(by_transformers, model, asked, 1)
        for name, model in models.items()
    }
    works |= {
        f"{name}, {precision}": partial(engine.first_token, asked[0])
        for (name, precision), engine in ours.items()
    }
    return measured(works, LONG_PROMPT, repeats)


def _equalities(models: dict[str, Any], ours: dict[tuple[str, Precision], Ours]) -> dict[str, bool]:
    asked = prompts(TOGETHER)
    found = {
        f"{name}: fp32 is transformers": by_transformers(model, asked) == ours[name, "fp32"](asked)
        for name, model in models.items()
    }
    for (name, precision), engine in ours.items():
        alone = [engine([prompt])[0] for prompt in asked]
        found[f"{name}: {precision} together is alone"] = engine(asked) == alone
    return found


def _arrivals(engine: Ours, repeats: int) -> dict[str, dict[str, Any]]:
    asked = prompts(ARRIVALS)
    started = time.perf_counter()
    engine(asked[:1])
    gap = (time.perf_counter() - started) / 2
    draw, after, now = random.Random(0), [], 0.0
    for _ in asked:
        after.append(now)
        now += draw.expovariate(1 / gap) / ARRIVALS
    works: dict[str, Callable[[], Any]] = {
        "alone": lambda: [engine([prompt]) for prompt in asked],
        "together": lambda: engine(asked, after),
    }
    return measured(works, ARRIVALS * NEW, repeats)


def _encoders(precisions: Sequence[Precision]) -> dict[str, Callable[[], Any]]:
    torch.manual_seed(0)
    plain = DistilBertModel(DistilBertConfig()).eval()
    ids = torch.randint(plain.config.vocab_size, (TEXTS, LENGTH))

    @torch.inference_mode()
    def read(model: DistilBertModel) -> None:
        model(input_ids=ids)

    works: dict[str, Callable[[], Any]] = {"transformers": partial(read, plain)}
    for precision in precisions[1:]:
        own = copy.deepcopy(plain)
        to_precision(own, precision, times=times_of(own))
        works[precision] = partial(read, own)
    return works


def _table(found: dict[str, dict[str, Any]], number: int, title: str = "") -> Table:
    table = Table("model", "tokens/s", *(f"speedup over transformers, {name}" for name in LAYERS))
    table.title = title or f"{number} concurrent"
    for name, own in found.items():
        ratios = (f"{ratio(found, name, f'{other}, transformers'):.2f}" for other in LAYERS)
        table.add_row(name, f"{own['tokens_per_second']:.0f}", *ratios)
    return table


if __name__ == "__main__":
    main()
