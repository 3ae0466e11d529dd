"""Throughput of one stream of text from SmolLM2: transformers, the engine of Stillhouse, llama.cpp
alone, and llama.cpp behind `stillhouse serve`.

    python -m benchmarks.llama_cpp --save

writes benchmarks/results/llama-cpp-KIND.json, KIND being this CPU's type. Needs the model `smollm2`
(see docs/guides/serving.md). Greedy, 64 new tokens after a prompt of 17, two threads; all alternate
in one process (A B C A B C), medians. The weights are those of the file in Q4_1: dequantized for
transformers (float32) and Stillhouse (float32, bfloat16, int8), written again in Q8_0 and F16 for
llama.cpp, and as they are. llama.cpp runs with its own settings (keys and values in half precision)
and with those that Stillhouse verifies exports with (float32, no flash attention). `serve` is the
command in a process of its own, asked by /v1/completions for the whole text.
"""

import argparse
import contextlib
import copy
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf.quants import dequantize, quantize
from rich.console import Console
from rich.table import Table

import stillhouse
from benchmarks import measure
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.engine.batcher import Event, NewToken, Request
from stillhouse.inference.generation import Generation
from stillhouse.inference.quantization import Precision, has_int8, times_of, to_precision
from stillhouse.inference.reference import greedy_tokens
from stillhouse.models.hub import gguf_file
from stillhouse.models.llama_cpp import LlamaCpp

NEW, CONTEXT, THREADS = 64, 256, 2
PROMPT = "The old man went down to the sea. The wind had been rising since noon,"
SETTINGS = Generation(greedy=True, max_new_tokens=NEW)
RESULTS = Path(__file__).parent / "results"
Tokens = Callable[[], list[int]]


def ours(loaded: CausalLM, precision: Precision, ids: tuple[int, ...]) -> Tokens:
    """The new tokens by our engine; the prompt is one that ends no text."""
    model = copy.deepcopy(loaded.model)
    to_precision(model, precision, times=times_of(model))
    batcher = CausalLM(model, loaded.tokenizer).batcher(1)

    def run() -> list[int]:
        found: list[int] = []

        def listen(event: Event) -> None:
            if isinstance(event, NewToken):
                found.append(event.token.id)

        batcher.submit(Request(ids, SETTINGS, 0), listen)
        batcher.run()
        return found

    return run


@contextlib.contextmanager
def served(file: Path, loaded: CausalLM) -> Iterator[Tokens]:
    """The new tokens by `stillhouse serve --engine llama.cpp`: those of the text that it sends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "stillhouse", "serve", str(file), "--port", str(port)]
    command += ["--engine", "llama.cpp", "--offline"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def run() -> list[int]:
        body = {"prompt": PROMPT, "max_tokens": NEW, "temperature": 0}
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), kind)
        with urllib.request.urlopen(request) as response:
            found = json.loads(response.read())
        assert found["usage"]["completion_tokens"] == NEW
        return loaded.encode(found["choices"][0]["text"])

    try:
        while not _answers(url):
            assert process.poll() is None, "the server ended"
            time.sleep(0.1)
        yield run
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health"):
            return True
    except urllib.error.URLError:
        return False


def written_in(kind: gguf.GGMLQuantizationType, source: Path, target: Path) -> Path:
    """The same file with its matrices in another type."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            outer, *inner = field.types
            writer.add_key_value(field.name, field.contents(), outer, inner[-1] if inner else None)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llama_cpp", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write every raw number to results/")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    loaded, file = stillhouse.load("smollm2", offline=True), gguf_file("smollm2")
    assert isinstance(loaded, CausalLM)
    assert file is not None
    ids = loaded.prompt_ids(PROMPT)
    works: dict[str, Tokens] = {
        "transformers, fp32": partial(greedy_tokens, loaded.model, ids, NEW)
    }
    precisions: list[Precision] = ["fp32", "bf16", *(["int8"] if has_int8() else [])]
    works |= {f"Stillhouse, {name}": ours(loaded, name, ids) for name in precisions}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
        files = {
            kind.name: written_in(kind, file, Path(folder) / f"{kind.name}.gguf")
            for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16)
        }
        files["Q4_1"] = file
        for name, path in files.items():
            for exact in (False, True):
                engine = LlamaCpp(path, CONTEXT, exact=exact)
                kind = "float32 keys and values" if exact else "its own settings"
                works[f"llama.cpp, {name}, {kind}"] = partial(engine.generate, ids, NEW)
            works[f"serve, {name}"] = servers.enter_context(served(path, loaded))
        tokens = {name: work() for name, work in works.items()}
        for name, found in tokens.items():  # a text's own tokens may be others than were chosen
            assert len(found) == NEW or name.startswith("serve, "), name
        seconds = measure.interleaved_seconds(works, repeats=options.repeats)  # pyright: ignore
    first = tokens["transformers, fp32"]
    results = {
        name: {
            "seconds": own,
            "tokens_per_second": NEW / statistics.median(own),
            "first_tokens_of_transformers": _common(tokens[name], first),
        }
        for name, own in seconds.items()
    }
    _print(results)
    if options.save:
        content = {
            "command": " ".join(["python -m benchmarks.llama_cpp", *sys.argv[1:]]),
            **measure.environment(),
            "threads": THREADS,
            "prompt_tokens": len(ids),
            "new_tokens": NEW,
            "results": results,
        }
        path = RESULTS / f"llama-cpp-{measure.cpu_kind()}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _common(tokens: list[int], others: list[int]) -> int:
    """How many tokens are equal from the start."""
    pairs = enumerate(zip(tokens, others, strict=False))
    return next((at for at, (one, other) in pairs if one != other), len(tokens))


def _print(results: dict[str, dict[str, Any]]) -> None:
    table = Table("engine", "tokens/s", "of llama.cpp in Q8_0", "first tokens as transformers'")
    reference = results["llama.cpp, Q8_0, its own settings"]["tokens_per_second"]
    for name, own in results.items():
        rate = own["tokens_per_second"]
        common = str(own["first_tokens_of_transformers"])
        table.add_row(name, f"{rate:.1f}", f"{rate / reference:.2f}", common)
    Console().print(table)


if __name__ == "__main__":
    main()
