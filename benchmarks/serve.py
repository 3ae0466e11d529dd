"""Overhead of HTTP and scheduling over the bare engine, and start-up time of a server.

    python -m benchmarks.serve --save

writes benchmarks/results/serve-KIND.json, KIND being this CPU's type.

A server of `stillhouse serve` in a separate process, with a model of DistilGPT2's shape and random
weights, and the same engine in this process; they alternate (A B A B), each waits for the other.

- one stream: 64 new tokens after 32, greedy, streamed token by token;
- sixteen concurrent streams, each the same;
- the editor's request: three texts of 12 tokens, whole;
- the time from the command until `/health` answers 200.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from benchmarks import measure
from benchmarks.generate import (
    ARRIVALS,
    LAYERS,
    NEW,
    RESULTS,
    Ours,
    make_model,
    measured,
    prompts,
    ratio,
)
from stillhouse.inference.quantization import Precision, has_int8
from stillhouse.models.load import save_model
from stillhouse.tokens.tokenizer_training import train_tokenizer

PORT = 8731
ADDRESS = f"http://127.0.0.1:{PORT}"
SUGGESTIONS, SUGGESTION_TOKENS = 3, 12


@contextmanager
def served(folder: Path, precision: str) -> Iterator[float]:
    """A server of this folder, and the seconds until it was ready."""
    command = [sys.executable, "-m", "stillhouse", "serve", str(folder), "--port", str(PORT)]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--precision", precision, "--offline"])
    try:
        asyncio.run(_ready(process))
        yield time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


async def _ready(process: subprocess.Popen[bytes]) -> None:
    async with aiohttp.ClientSession() as session:
        while process.poll() is None:
            try:
                async with session.get(f"{ADDRESS}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.02)
    raise RuntimeError("the server ended before it was ready")


def over_http(asked: list[tuple[int, ...]]) -> None:
    """All prompts concurrently, streamed to the end."""
    asyncio.run(_all(asked))


async def _all(asked: list[tuple[int, ...]]) -> None:
    counts = await asyncio.gather(*map(_stream, asked))
    assert counts == [NEW] * len(asked), f"tokens are missing: {counts}"


async def _stream(prompt: tuple[int, ...]) -> int:
    """The number of new tokens that the server counts.

    Every event wakes this client, but is only read at the end: on two cores what a client does
    with an event delays the engine, and it is the server that is measured.
    """
    body = {
        "model": "model",
        "prompt": list(prompt),
        "max_tokens": NEW,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    content = json.dumps(body)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{PORT}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    writer.write((head + content).encode())
    parts = []
    while part := await reader.read(2**16):
        parts.append(part)
    writer.close()
    status, *lines = b"".join(parts).split(b"\n")
    assert b" 200 " in status, status
    events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    (usage,) = (event["usage"] for event in events if event.get("usage"))
    return usage["completion_tokens"]


def tokenizer_of(vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, filled up with tokens that no text contains: prompts are ids, and the
    generated text is not read, but every sampled id must be a token."""
    tokenizer = train_tokenizer("byte_bpe", 257, iter([""]), "causal")
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = settings["model"]["vocab"]
    for number in range(len(tokenizer), vocabulary_size):
        vocabulary[f"token{number}"] = number
    backend = Tokenizer.from_str(json.dumps(settings))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=tokenizer.eos_token, bos_token=tokenizer.bos_token
    )


def suggest() -> None:
    """The editor's request."""
    asyncio.run(_suggest())


async def _suggest() -> None:
    body = {
        "model": "model",
        "prompt": list(prompts(1)[0]),
        "max_tokens": SUGGESTION_TOKENS,
        "n": SUGGESTIONS,
        "top_p": 0.9,
        "seed": 0,
    }
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{ADDRESS}/v1/completions", json=body) as answer,
    ):
        answer.raise_for_status()
        await answer.read()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write every raw number to results/")
    options = parser.parse_args()
    precision: Precision = "int8" if has_int8() else "fp32"
    model = make_model(LAYERS["distilgpt2"])
    results: dict[str, Any] = {"precision": precision}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_model(model, tokenizer_of(model.config.vocab_size), folder)
        bare = Ours(model, precision)
        starts = []
        for _ in range(options.starts - 1):
            with served(folder, precision) as seconds:
                starts.append(seconds)
        with served(folder, precision) as seconds:
            starts.append(seconds)
            for number in (1, ARRIVALS):
                works = {
                    "bare": partial(bare, prompts(number)),
                    "HTTP": partial(over_http, prompts(number)),
                }
                results[f"{number} at once"] = measured(works, number * NEW, options.repeats)
            tokens = SUGGESTIONS * SUGGESTION_TOKENS
            results["suggestions"] = measured({"HTTP": suggest}, tokens, options.repeats)
    results["seconds_to_ready"] = starts
    _print(results)
    if options.save:
        content = {
            "command": " ".join(["python -m benchmarks.serve", *sys.argv[1:]]),
            **measure.environment(),
            "results": results,
        }
        path = RESULTS / f"serve-{measure.cpu_kind()}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _print(results: dict[str, Any]) -> None:
    console, table = Console(), Table("streams", "bare, tokens/s", "HTTP, tokens/s", "overhead")
    for number in (1, ARRIVALS):
        found = results[f"{number} at once"]
        rates = [f"{found[name]['tokens_per_second']:.0f}" for name in ("bare", "HTTP")]
        table.add_row(str(number), *rates, f"{1 - ratio(found, 'HTTP', 'bare'):.1%}")
    console.print(table)
    seconds = statistics.median(results["suggestions"]["HTTP"]["seconds"])
    console.print(f"{SUGGESTIONS} suggestions of {SUGGESTION_TOKENS} tokens: {seconds:.2f} s")
    console.print(f"ready after {statistics.median(results['seconds_to_ready']):.1f} s")


if __name__ == "__main__":
    main()
