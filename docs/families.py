"""The laws of docs/reference/families.md: what holds, the tests that show it, and the tables of
what `benchmarks/family_laws.py` measured.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.families.settings import CAUSAL, MASKED

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "family-laws.json"
NATS = "largest difference of a token's log-probability, in nats"
RELATIVE = "norm of the difference over norm of the outputs"
FAMILIES, STUDENTS, EXPORT = "tests/families/test_laws.py", "tests/student", "tests/export"


@dataclass(frozen=True)
class Law:
    """What holds of a family, and its tests, each with a parameter `family` or `name`. A number in
    the table is the largest `difference` that they record; a test of a refusal records `refused`.
    """

    holds: str
    tests: tuple[str, ...]


LAWS = {
    "identity": Law(
        "A student with all layers has the logits of its teacher, to the bit.",
        (f"{FAMILIES}::test_identity",),
    ),
    "layers": Law(
        "A student without some layers has the logits of its teacher in which these layers add "
        "nothing (decoders) or pass on what they got (encoders, whose norms come after the sum), "
        "to the bit.",
        (f"{FAMILIES}::test_zeroed_layers", f"{FAMILIES}::test_skipped_layers"),
    ),
    "channels": Law(
        "A student with fewer feed-forward channels has the logits of its teacher in which the "
        "others are zero, to 1e-5.",
        (
            f"{STUDENTS}/test_width.py"
            "::test_a_student_with_fewer_channels_is_its_teacher_with_zeros",
        ),
    ),
    "heads": Law(
        "A student with fewer attention heads (`num_heads`) has the logits of its teacher in which "
        "the others are zero, to 1e-5.",
        (
            f"{STUDENTS}/test_width.py::test_a_student_with_fewer_heads_is_its_teacher_with_zeros",
            f"{STUDENTS}/test_width.py::test_heads_that_cannot_be_cut_are_refused",
        ),
    ),
    "hidden": Law(
        "A student of a smaller hidden size has the logits of its teacher in which the other "
        "channels are zero and LayerNorms read the kept ones alone, to 1e-5; and the same logits, "
        "to the bit, once it is saved and loaded.",
        (
            f"{STUDENTS}/test_width.py"
            "::test_a_student_of_a_smaller_hidden_size_is_its_teacher_with_zeros",
            f"{STUDENTS}/test_width.py::test_a_hidden_size_that_cannot_be_cut_is_refused",
        ),
    ),
    "parity": Law(
        "Body and head as they are trained have the logits of transformers, past every window. "
        "Number: largest difference of a logit.",
        (f"{FAMILIES}::test_parity",),
    ),
    "packing": Law(
        "Documents packed into one row, or beside padding, have the logits that transformers gives "
        "each alone. Number: largest difference of a logit.",
        (f"{FAMILIES}::test_packed_alone",),
    ),
    "bf16": Law(
        "In bfloat16 the logits stay within 5 %. Number: norm of the difference over norm of the "
        "logits.",
        (f"{FAMILIES}::test_bf16",),
    ),
    "reload": Law(
        "A saved folder of safetensors has the same logits, to the bit, by `AutoModel` and by "
        "Stillhouse.",
        (f"{FAMILIES}::test_reload",),
    ),
    "resume": Law(
        "Distillation that was stopped and resumed ends with the weights of uninterrupted "
        "distillation, to the bit.",
        (f"{FAMILIES}::test_resume",),
    ),
    "parameters": Law(
        "`check` counts, without weights, the parameters that transformers counts, of teacher and "
        "student.",
        (f"{FAMILIES}::test_parameters",),
    ),
    "generation": Law(
        "Prompts in chunks and single tokens of several texts in one batch have the logits of "
        "transformers, by the family's own token runner and by its body; greedy texts of requests "
        "that arrive at any time are those of transformers. Number: largest difference of a logit.",
        (
            f"{FAMILIES}::test_generation",
            "tests/inference/test_batching.py::test_greedy_tokens_are_those_of_transformers",
        ),
    ),
    "drafts": Law(
        "Speculative decoding gives the greedy text of the teacher, whatever the student drafts.",
        ("tests/inference/test_speculative.py::test_greedy_text_is_the_teacher_s",),
    ),
    "tasks": Law(
        "Predictions of a task do not depend on the batch, for each task whose head transformers "
        "has. Number: tasks.",
        ("tests/tasks/test_predict.py::test_predictions_are_independent_of_batching",),
    ),
    **{
        to: Law(
            f"{engine} computes the outputs of the model that is exported to it in float32. "
            f"Number: {number}.",
            (f"{EXPORT}/test_families.py::test_export_to_{to}_is_the_model_or_refused",),
        )
        for to, engine, number in (
            ("gguf", "llama.cpp", NATS),
            ("ctranslate2", "CTranslate2", f"{NATS}; of encoders, {RELATIVE}"),
            ("onnx", "ONNX Runtime", RELATIVE),
        )
    },
}


def law_list() -> str:
    """The laws, one line each."""
    return "\n".join(f"- **{name}**: {law.holds}" for name, law in LAWS.items())


def decoder_table() -> str:
    """One row for each decoder."""
    return _table(CAUSAL)


def encoder_table() -> str:
    """One row for each encoder."""
    return _table(MASKED)


def _table(names: Sequence[str]) -> str:
    """Markdown, without the laws that say nothing of any of these families.

    Raises:
        ValueError: a family was not measured.
    """
    found = json.loads(RESULTS.read_text(encoding="utf-8"))["families"]
    if missing := [name for name in names if name not in found]:
        raise ValueError(
            f"{RESULTS.name} lacks {', '.join(missing)}; run `python -m benchmarks.family_laws "
            f"--output {RESULTS.relative_to(RESULTS.parents[2])}`."
        )
    laws = [law for law in LAWS if any(law in found[name] for name in names)]
    rows = [["family", *laws], ["---"] * (len(laws) + 1)]
    rows += [[f"`{name}`", *(cell(law, found[name].get(law)) for law in laws)] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(law: str, result: Mapping[str, Any] | None) -> str:
    """How a law's result for a family is shown: its number, or whether it holds or is refused."""
    if result is None:
        return ""
    if result["failed"]:
        return "NO"
    if result.get("refused"):
        return "refused"
    if law == "tasks":
        return str(result["tests"])
    if "difference" in result:
        return _short(result["difference"])
    return "yes"


def _short(value: float) -> str:
    digits, _, power = f"{value:.0e}".partition("e")
    return "0" if value == 0 else f"{digits}e{int(power)}"
