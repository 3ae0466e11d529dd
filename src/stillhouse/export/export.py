"""Exports a model to another engine, verifies it there against the original, and times both."""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from stillhouse.errors import ModelError, RecipeError
from stillhouse.export.check import (
    LENGTH,
    NEW_TOKENS,
    PROMPT,
    TEXTS,
    Check,
    encoder_inputs,
    model_outputs,
    text_blocks,
)
from stillhouse.export.exported import Format, Precision, plain, vocabulary_of
from stillhouse.extras import install_command, require
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.load import load
from stillhouse.inference.reference import greedy_tokens, interleaved_rates
from stillhouse.machine import describe_machine, library_versions
from stillhouse.models.hub import resolve_folder
from stillhouse.runs.manifest import Inputs, commit_folder, sha256_of

FORMATS = {  # each with the modules that writing it needs
    "ctranslate2": ("ctranslate2",),
    "gguf": ("gguf",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}


def export_model(
    name: str, to: str, target: Path, *, precision: str | None = None, offline: bool = False
) -> dict[str, Any]:
    """Write the folder `target`, with the results of verification and timing in `export.json`.

    Raises:
        RecipeError: an unknown format or precision, a missing library, or a folder that exists.
        ModelError: the format does not support the model, or the exported model differs.
    """
    form = _format(to)
    wanted = _precision(form, to, precision)
    if target.exists():
        raise RecipeError(f"{target} is there already; name a folder that is not.")
    source = resolve_folder(name, offline=offline)
    loaded = load(source)
    exported = plain(loaded, vocabulary_of(name, loaded))
    if (reason := form.refusal(exported)) is not None:
        raise ModelError(f"{name} cannot be written as {to}: {reason}.")
    check = Check(name, to, wanted, exported)
    weights = {path.name: sha256_of(path) for path in sorted(source.glob("*.safetensors"))}
    inputs = Inputs("export", {"to": to, "precision": wanted}, weights)
    with commit_folder(target, inputs) as folder:
        notes = form.write(exported, folder, wanted)
        engine = form.open(exported, folder)
        found = {
            "model": name,
            "format": to,
            "precision": wanted,
            "size_bytes": sum(path.stat().st_size for path in folder.rglob("*")),
            "end_tokens": [exported.vocabulary.names[id] for id in exported.vocabulary.end_ids],
            "notes": [*notes, *_engine_notes(form, check, engine)],
            "parity": None if engine is None else check.run(engine),
            "speed": None if engine is None or not form.times else _speed(check, engine),
            "machine": describe_machine(),
            "versions": library_versions(),
        }
        (folder / "export.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _format(to: str) -> Format:
    if to not in FORMATS:
        raise RecipeError(f"There is no format {to!r}; choose from {', '.join(FORMATS)}.")
    require("export", *FORMATS[to], purpose=f"Export to {to}")
    return getattr(importlib.import_module(f"stillhouse.export.to_{to}"), to.upper())


def _precision(form: Format, to: str, precision: str | None) -> Precision:
    if precision is not None and precision not in form.precisions:
        raise RecipeError(
            f"{to} is not written in {precision}; choose from {', '.join(form.precisions)}."
        )
    return cast("Precision", precision or form.precisions[0])


def _engine_notes(form: Format, check: Check, engine: Any) -> list[str]:
    """Notes for the user on how the engine handles the file."""
    if engine is None:
        return [
            f"Not compared with {check.name}: {form.engine}, which reads the file, is not "
            f"installed. Install it with `{install_command('export')}`."
        ]
    vocabulary = check.exported.vocabulary
    others = getattr(engine, "end_ids", frozenset()) - set(vocabulary.end_ids)
    if not others:
        return []
    names = ", ".join(repr(vocabulary.names[id]) for id in sorted(others))
    return [f"{form.engine} also ends a text at {names}, which it knows by name."]


def _speed(check: Check, engine: Any) -> dict[str, Any]:
    """Tokens per second, interleaved with transformers in float32."""
    loaded = check.exported.loaded
    if isinstance(loaded, CausalLM):
        prompt = text_blocks(check)[0][: min(PROMPT, loaded.context // 2)]
        number = min(NEW_TOKENS, loaded.context - len(prompt))
        works: dict[str, Callable[[], int]] = {
            "transformers": lambda: len(greedy_tokens(loaded.model, prompt, number)),
            "exported": lambda: len(engine.generate(prompt, number)),
        }
        what = f"one text, greedy, {number} new tokens after {len(prompt)}"
    else:
        length = min(LENGTH, loaded.context)
        rows = encoder_inputs(check.exported)
        inputs = {name: np.resize(values[-1], (TEXTS, length)) for name, values in rows.items()}
        inputs["attention_mask"][:] = 1
        works = {
            "transformers": lambda: _num_tokens(model_outputs(loaded.model, inputs), inputs),
            "exported": lambda: _num_tokens(engine.outputs(inputs), inputs),
        }
        what = f"a batch of {TEXTS} x {length} tokens"
    rates = interleaved_rates(works)
    return {
        "what": what,
        "transformers_fp32_tokens_per_second": rates["transformers"],
        "tokens_per_second": rates["exported"],
        "ratio": rates["exported"] / rates["transformers"],
    }


def _num_tokens(outputs: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]) -> int:
    assert outputs, "the engine returned nothing"
    return inputs["input_ids"].size


def print_export(found: Mapping[str, Any], target: Path) -> None:
    """Print the result."""
    parity, speed = found["parity"], found["speed"]
    print(f"{target}: {found['format']}, {found['precision']}, {found['size_bytes'] / 1e6:.1f} MB")
    if parity is not None and "loss_change_nats" in parity:
        print(
            f"Same text: loss {parity['loss_change_nats']:+.5f} nats a token over "
            f"{parity['tokens_compared']:,} tokens, at most "
            f"{parity['largest_difference_nats']:.5f} for one of them; of "
            f"{parity['of_generated_tokens']} tokens generated, the first "
            f"{parity['same_first_tokens']} are the same."
        )
    elif parity is not None:
        for output, error in parity["relative_error"].items():
            print(f"Same outputs: {output} within {error:.1e} of its length.")
    if speed is not None:
        print(
            f"Speed: {speed['tokens_per_second']:,.0f} tokens/s, {speed['ratio']:.2f} times "
            f"transformers in float32 ({speed['what']})."
        )
    for note in found["notes"]:
        print(f"Note: {note}")
