"""Judges text files with a detector: the command `detect`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.text import Text

from stillhouse import terminal
from stillhouse.detection.detector import Detector, Judgment, judge
from stillhouse.detection.features import check_scoring_model, plain_text, token_statistics
from stillhouse.detection.fit import sha256_of_model
from stillhouse.errors import DataError
from stillhouse.evaluation.quality import read_text
from stillhouse.inference.load import load
from stillhouse.models.hub import resolve_folder
from stillhouse.training.device import pick_device


def detect_files(
    files: Sequence[Path], detector: Detector, model_name: str | None, *, offline: bool
) -> list[dict[str, Any]]:
    """The judgment of each text file.

    Args:
        model_name: The scoring model; by default that of the detector, under the name it had.

    Raises:
        DataError: a file that cannot be read, or that holds no words.
        ModelError: no such model, or not a causal language model.
    """
    texts = [read_text(file) for file in files]
    for file, text in zip(files, texts, strict=True):
        if not plain_text(text):
            raise DataError(f"{file} holds no words; give a file with the text to judge.")
    name = model_name or detector.model
    folder = resolve_folder(name, offline=offline)
    model = check_scoring_model(load(folder, device=pick_device()), name)
    is_other = sha256_of_model(folder, model) != detector.model_sha256
    found = []
    for file, text in zip(files, texts, strict=True):
        if is_other:
            reason = (
                f"{name} is another scoring model than the fitted one ({detector.model}); fit a "
                "detector for it with fit-detector"
            )
            judgment = Judgment("cannot tell", len(model.encode(plain_text(text))), reason)
        else:
            judgment = judge(detector, text, token_statistics(model, [text])[0])
        found.append({"file": str(file), **asdict(judgment)})
    return found


def print_judgments(found: Sequence[dict[str, Any]], detector: Detector) -> None:
    """Print the judgments on stdout."""
    rows = [
        [
            each["file"],
            each["verdict"],
            *(_percent(each[key]) for key in ("probability", "threshold")),
            f"{each['num_tokens']:,}",
        ]
        for each in found
    ]
    columns = ["text", "verdict", "probability", "threshold", "tokens"]
    parts: list[terminal.Part] = [terminal.table(columns, rows, wrap=True)]
    parts += [
        Text(f"{each['file']}: cannot tell: {each['reason']}.") for each in found if each["reason"]
    ]
    human = ", ".join(detector.sources["human"])
    parts.append(
        Text(
            "Probability of machine text, if half of all texts were. Above the threshold are at "
            f"most 1 % of human texts like those it was fitted on ({human}); other human texts may "
            "be above it more often. Not evidence against a person."
        )
    )
    terminal.show(*parts)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
