"""Which kernels are chosen on other types of CPU, as far as this one can emulate them.

    python -m benchmarks.isa

The libraries are configured not to use some of this CPU's instructions, each in a separate process:
oneDNN by ONEDNN_MAX_CPU_ISA, FBGEMM by FBGEMM_ENABLE_INSTRUCTIONS, PyTorch's own by
ATEN_CPU_CAPABILITY. For the shapes of DistilGPT2 and DistilBERT it prints the measured speedups
over float32, and what `auto` would try. AMX, other caches and clock rates cannot be emulated.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import torch
from rich.console import Console
from rich.table import Table
from transformers import DistilBertConfig, DistilBertModel, GPT2Config, GPT2LMHeadModel

from stillhouse.inference.quantization import (
    has_int8,
    is_faster_than_float32,
    onednn_rows,
    precisions,
    speedups,
    times_of,
)
from stillhouse.training.device import has_bf16

SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "oneDNN AVX512_CORE_VNNI": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "FBGEMM AVX512": {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX512"},
    "FBGEMM AVX2": {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"},
    "all AVX2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    },
}


def measured_here() -> dict[str, dict[str, str]]:
    """The measurements that precision selection sees in this process, as text, by model."""
    found = {}
    with torch.device("meta"):  # only the shapes count
        models = {
            "DistilGPT2": GPT2LMHeadModel(GPT2Config(n_layer=6)),
            "DistilBERT": DistilBertModel(DistilBertConfig()),
        }
    for name, model in models.items():
        times = times_of(model)
        is_causal = name == "DistilGPT2"
        tried = [
            each
            for each in precisions(times, is_causal=is_causal)
            if is_faster_than_float32(times, each, is_causal=is_causal)
        ]
        found[name] = {
            "int8": _text(speedups(times, "int8")) if has_int8() else "not exact",
            "oneDNN's int8": f"from {rows} rows" if (rows := onednn_rows(times)) else "no",
            "bf16": _text(speedups(times, "bf16")),
            "auto tries": ", ".join(tried) or "fp32",
            "training": "bf16" if has_bf16(torch.device("cpu")) else "fp32",
            "threads": str(times.threads),
        }
    return found


def _text(found: dict[int, float] | None) -> str:
    if found is None:
        return "far slower"
    return " ".join(f"{rows}: {times:.1f}x" for rows, times in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.isa", description=__doc__)
    parser.add_argument("--here", action="store_true", help="this process alone, as JSON")
    if parser.parse_args().here:
        print(json.dumps(measured_here()))
        return
    table: Table | None = None
    for setting, variables in SETTINGS.items():
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, **variables, "XDG_CACHE_HOME": cache}
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.isa", "--here"]
            answer = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
        for name, own in json.loads(answer.stdout.splitlines()[-1]).items():
            if table is None:
                table = Table("instructions", "model", *own)
            table.add_row(setting, name, *own.values())
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
