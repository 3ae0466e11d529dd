"""Writes a model for another engine, holds it against the model on real text, and times both."""

import importlib
import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stillhouse.data.sample import sample_documents
from stillhouse.errors import ModelError, RecipeError
from stillhouse.export.exported import CausalEngine, EncoderEngine, Format, Precision
from stillhouse.families import resolve_folder
from stillhouse.generation.gate import ALLOWED, blocks_of
from stillhouse.generation.loaded import LoadedModel, load
from stillhouse.generation.reference import greedy_tokens, interleaved_rates, log_probabilities
from stillhouse.machine import describe_machine, library_versions
from stillhouse.run_folder import Inputs, commit_folder, sha256_of

FORMATS = ("ctranslate2", "gguf", "onnx")
PROMPT, NEW_TOKENS = 32, 64
TEXTS, LENGTH = 8, 128
# How far an encoder's outputs may lie from the model's, of their own length.
ALLOWED_ERROR: Mapping[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.15}


def export_model(
    name: str, to: str, target: Path, *, precision: str | None = None, offline: bool = False
) -> dict[str, Any]:
    """Write `target`, with `export.json` in it: what was checked, and how fast it is.

    Raises:
        RecipeError: an unknown format or precision, a library that is missing, or a folder that is
            there already.
        ModelError: a model that this format does not hold, or that does not come out the same.
    """
    form = _format(to)
    wanted = _precision(form, to, precision)
    if target.exists():
        raise RecipeError(f"{target} is there already; name a folder that is not.")
    source = resolve_folder(name, offline=offline)
    loaded = load(source)
    if (reason := form.refusal(loaded)) is not None:
        raise ModelError(f"{name} cannot be written as {to}: {reason}.")
    weights = {path.name: sha256_of(path) for path in sorted(source.glob("*.safetensors"))}
    inputs = Inputs("export", {"to": to, "precision": wanted}, weights)
    with commit_folder(target, inputs) as folder:
        form.write(loaded, source, folder, wanted)
        engine = form.open(loaded, folder)
        checked = (
            _check_causal(name, loaded, engine, wanted)
            if isinstance(engine, CausalEngine)
            else _check_encoder(name, loaded, engine, wanted)
        )
        found = {
            "model": name,
            "format": to,
            "precision": wanted,
            "size_bytes": sum(path.stat().st_size for path in folder.rglob("*")),
            **checked,
            "speed": _speed(loaded, engine) if form.times else None,
            "machine": describe_machine(),
            "versions": library_versions(),
        }
        (folder / "export.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _format(to: str) -> Format:
    if to not in FORMATS:
        raise RecipeError(f"There is no format {to!r}; choose from {', '.join(FORMATS)}.")
    try:
        return getattr(importlib.import_module(f"stillhouse.export.to_{to}"), to.upper())
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"Writing {to} needs {error.name}; install it with `pip install 'stillhouse[export]'`."
        ) from error


def _precision(form: Format, to: str, precision: str | None) -> Precision:
    for each in form.precisions:
        if precision in (None, each):
            return each
    raise RecipeError(
        f"{to} is not written in {precision}; choose from {', '.join(form.precisions)}."
    )


def _check_causal(
    name: str, loaded: LoadedModel, engine: CausalEngine, precision: Precision
) -> dict[str, Any]:
    """Perplexity on the sample text, and the likeliest continuation of a prompt."""
    blocks = blocks_of(loaded)
    own = [log_probabilities(loaded.model, block) for block in blocks]
    others = [engine.log_probabilities(block) for block in blocks]
    change = math.expm1(float(np.mean(own) - np.mean(others)))
    furthest = float(np.abs(np.array(own) - np.array(others)).max())
    if not change <= ALLOWED:
        raise ModelError(
            f"Written in {precision}, the perplexity of {name} rises by {change:.1%} on the sample "
            f"text; {ALLOWED:.0%} is allowed. Take --precision fp32."
        )
    prompt = blocks[0][:PROMPT]
    number = min(NEW_TOKENS, loaded.context - PROMPT)
    own_tokens, others_tokens = (
        greedy_tokens(loaded.model, prompt, number),
        engine.generate(prompt, number),
    )
    pairs = enumerate(zip(own_tokens, others_tokens, strict=True))
    same = next((at for at, (a, b) in pairs if a != b), number)
    return {
        "parity": {
            "perplexity_change": change,
            "largest_difference_nats": furthest,
            "tokens_compared": sum(map(len, own)),
            "same_first_tokens": same,
            "of_generated_tokens": number,
        }
    }


def _check_encoder(
    name: str, loaded: LoadedModel, engine: EncoderEngine, precision: Precision
) -> dict[str, Any]:
    """The outputs for texts of the sample, of several lengths in one batch."""
    inputs = _encoder_inputs(loaded)
    mask = inputs["attention_mask"].astype(bool)
    own = {**_outputs(loaded.model.base_model, inputs), **_outputs(loaded.model, inputs)}
    errors = {}
    for output, other in engine.outputs(inputs).items():
        right = own[output]
        rows = mask if right.shape[:2] == mask.shape else slice(None)
        difference = other[rows] - right[rows]
        errors[output] = float(np.linalg.norm(difference) / np.linalg.norm(right[rows]))
    worst = max(errors.values())
    if not worst <= ALLOWED_ERROR[precision]:
        raise ModelError(
            f"Written in {precision}, the outputs of {name} differ by {worst:.2%} of their length; "
            f"{ALLOWED_ERROR[precision]:.2%} is allowed. Take --precision fp32."
        )
    return {"parity": {"relative_error": errors, "tokens_compared": int(mask.sum())}}


def _encoder_inputs(loaded: LoadedModel) -> dict[str, np.ndarray]:
    length = min(LENGTH, loaded.context)
    documents = sample_documents()
    texts = [next(documents)[1][: 60 * (number + 1)] for number in range(TEXTS)]
    found = loaded.tokenizer(
        texts, padding=True, truncation=True, max_length=length, return_tensors="np"
    )
    return {name: np.asarray(found[name], np.int64) for name in ("input_ids", "attention_mask")}


@torch.inference_mode()
def _outputs(model: nn.Module, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = model(**{name: torch.from_numpy(values) for name, values in inputs.items()})
    return {name: value.numpy() for name, value in found.items() if torch.is_tensor(value)}


def _speed(loaded: LoadedModel, engine: Any) -> dict[str, Any]:
    """Tokens per second, in turns with transformers in float32."""
    if loaded.is_causal:
        prompt = blocks_of(loaded)[0][:PROMPT]
        number = min(NEW_TOKENS, loaded.context - PROMPT)
        works: dict[str, Callable[[], int]] = {
            "transformers": lambda: len(greedy_tokens(loaded.model, prompt, number)),
            "exported": lambda: len(engine.generate(prompt, number)),
        }
        what = f"one text, greedy, {number} new tokens after {PROMPT}"
    else:
        length = min(LENGTH, loaded.context)
        ids = np.resize(_encoder_inputs(loaded)["input_ids"][-1], (TEXTS, length))
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        works = {
            "transformers": lambda: _tokens_read(partial(_outputs, loaded.model), inputs),
            "exported": lambda: _tokens_read(engine.outputs, inputs),
        }
        what = f"a batch of {TEXTS} x {length} tokens"
    rates = interleaved_rates(works)
    return {
        "what": what,
        "transformers_fp32_tokens_per_second": rates["transformers"],
        "tokens_per_second": rates["exported"],
        "ratio": rates["exported"] / rates["transformers"],
    }


def _tokens_read(read: Callable[..., Any], inputs: Mapping[str, np.ndarray]) -> int:
    read(inputs)
    return inputs["input_ids"].size


def print_export(found: Mapping[str, Any], target: Path) -> None:
    """The result for people."""
    parity, speed = found["parity"], found["speed"]
    print(f"{target}: {found['format']}, {found['precision']}, {found['size_bytes'] / 1e6:.1f} MB")
    if "perplexity_change" in parity:
        print(
            f"Same text: perplexity {parity['perplexity_change']:+.3%} over "
            f"{parity['tokens_compared']:,} tokens; of {parity['of_generated_tokens']} tokens "
            f"generated, the first {parity['same_first_tokens']} are the same."
        )
    else:
        for output, error in parity["relative_error"].items():
            print(f"Same outputs: {output} within {error:.1e} of its length.")
    if speed is not None:
        print(
            f"Speed: {speed['tokens_per_second']:,.0f} tokens/s, {speed['ratio']:.2f} times "
            f"transformers in float32 ({speed['what']})."
        )
