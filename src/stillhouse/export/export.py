"""Exports a model to another engine, verifies it there against the original, and times both.

Bounds are two-sided: a text that becomes more likely is as wrong as one that becomes less likely.
The original model is compared, not the copy that was written. For single log-probabilities the
original runs with the engine's own activation function, if it has one (llama.cpp's GELU is a
table): its rounding does not depend on the file, and exceeds the bound in some models.

Axes: T tokens, V vocabulary.
"""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from stillhouse.data.sources.sample import sample_documents
from stillhouse.errors import ModelError, RecipeError
from stillhouse.export.exported import (
    CausalEngine,
    EncoderEngine,
    Exported,
    Format,
    Precision,
    TokenizingEngine,
    plain,
    vocabulary_of,
)
from stillhouse.extras import install_command, require
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.load import load
from stillhouse.inference.masked_lm import MaskedLM
from stillhouse.inference.quantization import blocks_of
from stillhouse.inference.reference import greedy_tokens, interleaved_rates
from stillhouse.machine import describe_machine, library_versions
from stillhouse.models.folder_check import reads_token_types
from stillhouse.models.hub import resolve_folder
from stillhouse.runs.manifest import Inputs, commit_folder, sha256_of
from stillhouse.tokens.vocabulary import SPACE

FORMATS = {  # each with the modules that writing it needs
    "ctranslate2": ("ctranslate2",),
    "gguf": ("gguf",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}
PROMPT, NEW_TOKENS = 32, 64
TEXTS, LENGTH = 8, 128
CHARACTERS = 2000  # of a text for the comparison of tokenizers
ADDED_TOKENS = 64  # compared inside a text, at most
# In nats: for the mean loss per token of real text, and for any one log-probability, not counting
# the effect of the engine's activation function.
CAUSAL_BOUNDS: Mapping[Precision, Mapping[str, float]] = {
    "fp32": {"loss": 1e-3, "log_probability": 5e-3},
    "fp16": {"loss": 2e-3, "log_probability": 5e-2},
    "int8": {"loss": 1e-2, "log_probability": 0.5},
}
# Relative error (norm of the error over norm of the reference): for a whole output, and for any one
# row of it (a token or a text).
ENCODER_BOUNDS: Mapping[Precision, Mapping[str, float]] = {
    "fp32": {"output": 1e-4, "row": 1e-3},
    "fp16": {"output": 1e-2, "row": 5e-2},
    "int8": {"output": 0.15, "row": 0.5},
}


@dataclass(frozen=True)
class Check:
    """A model of this name, exported to a format in a precision."""

    name: str
    to: str
    precision: Precision
    exported: Exported

    def run(self, engine: CausalEngine | EncoderEngine) -> dict[str, Any]:
        """Compare the engine's outputs with the model's.

        Raises:
            ModelError: the difference exceeds the precision's bounds.
        """
        if isinstance(engine, CausalEngine):
            _check_ends(self, engine)
            if isinstance(engine, TokenizingEngine):
                _check_text(self, engine)
            return _compare_log_probabilities(self, engine) | _compare_greedy(self, engine)
        return _compare_outputs(self, engine)

    def refuse(self, difference: str) -> ModelError:
        """The error for a difference, with what to do."""
        advice = (
            f"{self.to} does not compute this model; take another format."
            if self.precision == "fp32"
            else "Take --precision fp32."
        )
        if remedy := _format(self.to).remedy(self.precision):
            advice = f"{remedy} Or take --precision fp32."
        return ModelError(f"Written as {self.to} in {self.precision}, {difference}. {advice}")


def _check_ends(check: Check, engine: CausalEngine) -> None:
    vocabulary = check.exported.vocabulary
    if missing := set(vocabulary.end_ids) - engine.end_ids:
        names = ", ".join(repr(vocabulary.names[id]) for id in sorted(missing))
        raise check.refuse(f"{check.name} no longer ends a text at {names}")


def _check_text(check: Check, engine: TokenizingEngine) -> None:
    """The engine tokenizes like the tokenizer, and decodes back to the text."""
    tokenizer = check.exported.loaded.tokenizer
    texts = [text[:CHARACTERS] for _, text in islice(sample_documents(), 2)]
    for token in islice(tokenizer.added_tokens_decoder.values(), ADDED_TOKENS):
        shown = token.content.replace(SPACE, " ")
        texts += [f"a{shown}b", f"a {shown} b"]
    for text in texts:
        own, found = tokenizer(text, add_special_tokens=False)["input_ids"], engine.tokens_of(text)
        if found != own:
            at = next(n for n in range(len(own) + 1) if own[: n + 1] != found[: n + 1])
            raise check.refuse(
                f"the text {text[:40]!r} has other tokens than in {check.name}, from token {at}: "
                f"{found[at : at + 4]} where it has {own[at : at + 4]}"
            )
        back, right = engine.text_of(own), tokenizer.decode(own)
        spaced = "".join(tokenizer.convert_ids_to_tokens(own[:1])).startswith(SPACE)
        if back != right and not (spaced and back == f" {right}"):  # the space before each text
            raise check.refuse(f"the tokens of {right!r:.40} give the text {back!r:.40}")


def _compare_log_probabilities(check: Check, engine: CausalEngine) -> dict[str, Any]:
    exported, bounds = check.exported, CAUSAL_BOUNDS[check.precision]
    blocks = text_blocks(check)
    found = np.concatenate([engine.log_probabilities(block) for block in blocks])
    own = np.concatenate([_log_probabilities(exported, block) for block in blocks])
    with _activation(exported.loaded.model, engine.activation):
        expected = np.concatenate([_log_probabilities(exported, block) for block in blocks])
    loss, largest = float((own - found).mean()), float(np.abs(found - expected).max())
    if not abs(loss) <= bounds["loss"]:
        raise check.refuse(
            f"the loss of {check.name} changes by {loss:+.4f} nats a token (its perplexity by "
            f"{np.expm1(loss):+.1%}) on the sample text; {bounds['loss']} is allowed to either side"
        )
    if not largest <= bounds["log_probability"]:
        raise check.refuse(
            f"a log-probability of {check.name} changes by {largest:.4f} nats on the sample text; "
            f"{bounds['log_probability']} is allowed"
        )
    return {
        "loss_change_nats": loss,
        "perplexity_change": float(np.expm1(loss)),
        "largest_difference_nats": float(np.abs(found - own).max()),
        "largest_difference_beside_activation_nats": largest,
        "tokens_compared": len(found),
        "allowed": bounds,
    }


def _compare_greedy(check: Check, engine: CausalEngine) -> dict[str, Any]:
    """The engine's greedy continuation of a prompt. Each token must be the model's own choice
    there, or so close to it in probability that the bounds allow either. Tokens that end a text and
    unused ids are excluded."""
    exported, bounds = check.exported, CAUSAL_BOUNDS[check.precision]
    prompt, number = prompt_of(check)
    found = engine.generate(prompt, number)
    left_out = engine.end_ids.union(exported.vocabulary.end_ids, exported.vocabulary.unused)
    with _activation(exported.loaded.model, engine.activation):
        logits = _logits(exported, [*prompt, *found])[len(prompt) - 1 :]
    logits = logits.index_fill(1, torch.tensor(sorted(left_out)), -torch.inf)
    gaps = (logits.amax(1) - logits.gather(1, torch.tensor(found)[:, None])[:, 0]).tolist()
    for at, gap in enumerate(gaps):
        if not gap <= 2 * bounds["log_probability"]:  # NaN, too
            raise check.refuse(
                f"{check.name} generates another text: after {at} tokens the next one is "
                f"{gap:.3f} nats less likely than its own"
            )
    same = next((at for at, gap in enumerate(gaps) if gap > 0), len(found))
    return {"same_first_tokens": same, "of_generated_tokens": number}


def prompt_of(check: Check) -> tuple[list[int], int]:
    """A prompt from the sample text, and the number of tokens to generate after it."""
    context = check.exported.loaded.context
    prompt = text_blocks(check)[0][: min(PROMPT, context // 2)]
    return prompt, min(NEW_TOKENS, context - len(prompt))


def text_blocks(check: Check) -> list[list[int]]:
    """Blocks of tokens of the sample text.

    Raises:
        ModelError: the tokenizer has no tokens for it.
    """
    if not (blocks := blocks_of(check.exported.loaded)):
        raise ModelError(f"The tokenizer of {check.name} has no tokens for the sample text.")
    return blocks


@torch.inference_mode()
def _logits(exported: Exported, ids: Sequence[int]) -> torch.Tensor:
    """The logits before each token but the first (T - 1, V), without the vocabulary's padding."""
    logits = exported.loaded.model(input_ids=torch.tensor([list(ids)])).logits
    return logits[0, :-1, : len(exported.vocabulary)].float()


def _log_probabilities(exported: Exported, ids: Sequence[int]) -> np.ndarray:
    """Log-probabilities of all tokens but the first (T - 1), in nats."""
    found = _logits(exported, ids).log_softmax(-1)
    return found.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


@contextmanager
def _activation(model: Any, activation: nn.Module | None) -> Iterator[None]:
    """Inside, a causal model uses this activation function."""
    changed = (
        {}
        if activation is None
        else {
            part: name
            for part in model.base_model.modules()
            for name in ("act", "act_fn")
            if isinstance(getattr(part, name, None), nn.Module)
        }
    )
    before = [getattr(part, name) for part, name in changed.items()]
    for part, name in changed.items():
        setattr(part, name, activation)
    try:
        yield
    finally:
        for (part, name), own in zip(changed.items(), before, strict=True):
            setattr(part, name, own)


def _compare_outputs(check: Check, engine: EncoderEngine) -> dict[str, Any]:
    """Outputs for pairs of sample texts of several lengths in one batch."""
    exported, bounds = check.exported, ENCODER_BOUNDS[check.precision]
    inputs = encoder_inputs(exported)
    mask = inputs["attention_mask"].astype(bool)
    body = model_outputs(exported.loaded.model.base_model, inputs)
    own = {**body, **model_outputs(exported.loaded.model, inputs)}
    if isinstance(exported.loaded, MaskedLM):
        own["logits"] = own["logits"][..., : len(exported.vocabulary)]
    errors, rows = {}, {}
    for output, found in engine.outputs(inputs).items():
        right = own[output]
        error = np.linalg.norm(_rows(output, found - right, mask), axis=-1)
        length = np.linalg.norm(_rows(output, right, mask), axis=-1)
        errors[output] = float(np.linalg.norm(error) / np.linalg.norm(length))
        # A row of small norm is compared with the median norm.
        rows[output] = float((error / np.maximum(length, np.median(length))).max())
    for kind, worst, allowed in (
        ("the outputs", max(errors.values()), bounds["output"]),
        ("one row of the outputs", max(rows.values()), bounds["row"]),
    ):
        if not worst <= allowed:
            raise check.refuse(
                f"{kind} of {check.name} differ by {worst:.2%} of their length; {allowed:.2%} is "
                "allowed"
            )
    return {
        "relative_error": errors,
        "largest_row_error": rows,
        "tokens_compared": int(mask.sum()),
        "allowed": bounds,
    }


def _rows(output: str, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One row per token or text, without padding."""
    if output in ("start_logits", "end_logits"):
        return np.where(mask, values, 0)
    return values[mask] if values.ndim == 3 else values


def encoder_inputs(exported: Exported) -> dict[str, np.ndarray]:
    """Pairs of texts of several lengths, padded."""
    loaded = exported.loaded
    texts = [text[: 60 * (n + 1)] for n, (_, text) in enumerate(islice(sample_documents(), TEXTS))]
    found = loaded.tokenizer(
        [text[: len(text) // 2] for text in texts],
        [text[len(text) // 2 :] for text in texts],
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=min(LENGTH, loaded.context),
        return_token_type_ids=True,
        return_tensors="np",
    )
    names = ["input_ids", "attention_mask"]
    if reads_token_types(loaded.model.config):
        names.append("token_type_ids")
    return {name: np.asarray(found[name], np.int64) for name in names}


@torch.inference_mode()
def model_outputs(model: nn.Module, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All output tensors of a transformers model, by name."""
    found = model(**{name: torch.from_numpy(values) for name, values in inputs.items()})
    return {name: value.numpy() for name, value in found.items() if torch.is_tensor(value)}


def export_model(
    name: str, to: str, target: Path, *, precision: str | None = None, offline: bool = False
) -> dict[str, Any]:
    """Write the folder `target`, with the results of verification and timing in `export.json`.

    Raises:
        RecipeError: an unknown format or precision, a missing library, or a folder that exists.
        ModelError: the format does not support the model, or the exported model differs.
    """
    form = _format(to)
    if precision is not None and precision not in form.precisions:
        raise RecipeError(
            f"{to} is not written in {precision}; choose from {', '.join(form.precisions)}."
        )
    wanted = cast("Precision", precision or form.precisions[0])
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
        prompt, number = prompt_of(check)
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
