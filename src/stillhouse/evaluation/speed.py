"""Speed and memory: interleaved timing of several models, and peak memory in fresh processes.

Forward: a batch of 8 sequences of up to 256 tokens, with the head. Generation: one sequence,
greedy, 64 new tokens after 16, key/value cache on. Models take turns (A B C A B C ...); the median
of 5 turns after one warm-up counts. Models with the same configuration are measured once."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from stillhouse.families import Family
from stillhouse.generation.reference import greedy_tokens, interleaved_rates

BATCH, LENGTH = 8, 256
PROMPT, NEW_TOKENS = 16, 64

MEMORY_PROGRAM = """
import resource, sys
from pathlib import Path
import torch
from stillhouse.evaluation.speed import run_forward
from stillhouse.families import load_model
from stillhouse.training.device import pick_device
family, model = load_model(Path(sys.argv[1]))
device = pick_device()
run_forward(family, model.to(device))
on_host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(torch.cuda.max_memory_allocated() if device.type == "cuda" else on_host)
"""


@torch.inference_mode()
def run_forward(family: Family, model: PreTrainedModel) -> int:
    """One forward pass over a batch of random tokens; returns the number of tokens."""
    length = min(LENGTH, family.num_positions(model.config))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (BATCH, length), generator=generator)
    model(input_ids=ids.to(model.device))
    return BATCH * length


def run_generation(family: Family, model: PreTrainedModel) -> int:
    """Greedy continuation of one random prompt; returns the number of new tokens."""
    positions = family.num_positions(model.config)
    prompt = min(PROMPT, positions // 2)
    new_tokens = min(NEW_TOKENS, positions - prompt)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (prompt,), generator=generator).tolist()
    return len(greedy_tokens(model, ids, new_tokens))


def measure_speed(
    models: Mapping[str, tuple[Family, PreTrainedModel]],
) -> dict[str, dict[str, float | None]]:
    """Tokens per second of each model, forward and generating (None for masked models)."""
    causal = {name: pair for name, pair in models.items() if pair[0].language_modeling == "causal"}
    forward = _interleaved(run_forward, models)
    generating = _interleaved(run_generation, causal)
    return {
        name: {
            "forward_tokens_per_second": forward[name],
            "generate_tokens_per_second": generating.get(name),
        }
        for name in models
    }


def _interleaved(
    work: Callable[[Family, PreTrainedModel], int],
    models: Mapping[str, tuple[Family, PreTrainedModel]],
) -> dict[str, float]:
    return interleaved_rates({name: partial(work, *pair) for name, pair in models.items()})


def peak_memory_bytes(folder: Path) -> int | None:
    """Peak memory of a fresh process that loads the model and runs one forward pass.

    Resident memory of the process; on a GPU, what was allocated there.
    """
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    return json.loads(result.stdout) if result.returncode == 0 else None


def shape_key(folder: Path) -> str:
    """Equal for models of equal configuration, whose speed and memory are the same."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return json.dumps(
        {key: value for key, value in config.items() if not key.startswith("_")}, sort_keys=True
    )
