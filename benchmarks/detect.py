"""Detection of machine text: a detector fitted on some sources, and its rates on others.

    python -m benchmarks.detect --student FOLDER --control FOLDER [--texts 40] [--human 100]
        [--precision fp32] [--data ../shared/data] [--folder runs/detect] [--output FILE]
        [--detector FILE]

Human excerpts and machine texts are those of benchmarks/detect_texts.py. SmolLM2 scores; the
detector is fitted on its own texts from prompts of an encyclopedia and novels, at temperatures 0.7
and 1, by top-p and greedily. Tests differ in one thing each: prompts and human texts of the same
genres from other documents, another genre, temperatures that were not fitted, other generators,
words replaced; and in all but the last. Each at 50, 150 and 500 tokens of SmolLM2.

Texts and their features are kept in --folder: an interrupted run resumes, and one with more texts
adds to them. Writes a file to benchmarks/results/detect, from which `make docs` makes the tables of
docs/guides/detect.md, and the fitted detector to --detector.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from benchmarks import measure
from benchmarks.detect_texts import (
    CELLS,
    FITTED_GENRES,
    FOREIGN_GENRES,
    OTHER_GENRES,
    Excerpt,
    excerpts,
    generate_missing,
    prompts_of,
    read_texts,
    replace_words,
)
from stillhouse.detection.detector import (
    Detector,
    threshold_of,
    unlike_reason,
)
from stillhouse.detection.features import FEATURES, features_of, token_statistics
from stillhouse.detection.fit import WORDS_PER_TOKEN, make_detector, sha256_of_model
from stillhouse.detection.measures import detector_rates, rates
from stillhouse.errors import StillhouseError
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.quantization import load_at_precision
from stillhouse.models.hub import resolve_folder

RESULTS = Path(__file__).parent / "results" / "detect"
LENGTHS = (50, 150, 500)
SCORING_MODEL = "smollm2"
SCORED_AT_ONCE = 16
SINGLE = ("log_probability", "log_rank", "top_10", "curvature")  # told alone, without a fit
REPLACED = {"replaced-10": 0.1, "replaced-30": 0.3}
# Of each test the human texts, and the cells or replaced texts of machine text.
TESTS: Mapping[str, tuple[str, Sequence[str]]] = {
    "as fitted, other documents": ("human-same", ("same-0.7", "same-1.0")),
    "another genre": ("human-other", ("genre-0.7", "genre-1.0")),
    "temperature 0.85": ("human-same", ("temperature-0.85",)),
    "temperature 1.2": ("human-same", ("temperature-1.2",)),
    "another generator: student": ("human-same", ("student-1.0",)),
    "another generator: control": ("human-same", ("control-1.0",)),
    "another generator: sample": ("human-same", ("sample-1.0",)),
    "10 % of words replaced": ("human-same", ("replaced-10",)),
    "30 % of words replaced": ("human-same", ("replaced-30",)),
    "genre, generator and temperature": ("human-other", ("all-0.85",)),
}
Features = Mapping[int, np.ndarray]  # of each length, (N, F)


def human_excerpts(data: Path, number: int, model: CausalLM) -> dict[str, dict[str, list[Excerpt]]]:
    """The excerpts of each split and genre; other genres are for tests alone."""
    found = {"fit": FITTED_GENRES, "test": (*FITTED_GENRES, *OTHER_GENRES)}
    return {
        split: {genre: excerpts(data, genre, split, number, model.tokenizer) for genre in genres}
        for split, genres in found.items()
    }


def human_texts(own: Mapping[str, Mapping[str, Sequence[Excerpt]]]) -> dict[str, list[str]]:
    sets = {
        "human-fit": ("fit", FITTED_GENRES),
        "human-same": ("test", FITTED_GENRES),
        "human-other": ("test", OTHER_GENRES),
    }
    return {
        name: [each.text for genre in genres for each in own[split][genre]]
        for name, (split, genres) in sets.items()
    }


def replaced_texts(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The texts of `as fitted` with words replaced by those of the human texts."""
    words = [word for text in texts["human-same"] for word in text.split()]
    own = [*texts["same-0.7"], *texts["same-1.0"]]
    return {
        name: [replace_words(text, fraction, words, seed) for seed, text in enumerate(own)]
        for name, fraction in REPLACED.items()
    }


class FeatureFile:
    """The features of texts at each length they have, kept in a file under their hashes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self._known = {each["sha256"]: each["features"] for each in map(json.loads, lines)}

    def add(self, model: CausalLM, texts: Iterable[str]) -> None:
        """Score the texts that are not in the file yet."""
        missing = [text for text in dict.fromkeys(texts) if _key(text) not in self._known]
        for first in range(0, len(missing), SCORED_AT_ONCE):
            some = missing[first : first + SCORED_AT_ONCE]
            for text, tokens in zip(some, token_statistics(model, some), strict=True):
                found = {
                    str(length): features_of(tokens.first(length)).tolist()
                    for length in LENGTHS
                    if len(tokens) >= length
                }
                self._known[_key(text)] = found
                line = json.dumps({"sha256": _key(text), "features": found})
                with self._file.open("a", encoding="utf-8") as content:
                    content.write(f"{line}\n")

    def of(self, texts: Sequence[str]) -> Features:
        """The features (N, F) of the texts that have each length."""
        own = [self._known[_key(text)] for text in texts]
        return {
            length: np.array([each[str(length)] for each in own if str(length) in each]).reshape(
                -1, len(FEATURES)
            )
            for length in LENGTHS
        }


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_results(detector: Detector, sets: Mapping[str, Features]) -> dict[str, Any]:
    """The rates of the detector, and of single features, in each test and length."""
    found: dict[str, Any] = {}
    for title, (human, names) in TESTS.items():
        found[title] = {}
        for fit in detector.fits:
            ours = sets[human][fit.tokens]
            machine = np.concatenate([sets[name][fit.tokens] for name in names])
            if not len(machine):
                continue  # texts of a generator with a short context
            own = detector_rates(fit.log_odds(ours), fit.log_odds(machine), fit.threshold)
            single = {
                name: single_rates(name, sets["human-fit"][fit.tokens], ours, machine)
                for name in SINGLE
            }
            curve = roc(fit.log_odds(ours), fit.log_odds(machine))
            found[title][str(fit.tokens)] = {**own, "roc": curve, "single": single}
    return found


def roc(human: np.ndarray, machine: np.ndarray) -> list[list[float]]:
    """The receiver operating characteristic: false and true positives at every threshold."""
    is_machine = np.repeat([0, 1], [len(human), len(machine)])
    false, true, _ = roc_curve(is_machine, np.concatenate([human, machine]))
    return np.stack([false, true], axis=1).round(4).tolist()


def single_rates(
    name: str, fitted: np.ndarray, human: np.ndarray, machine: np.ndarray
) -> dict[str, Any]:
    """The rates of one feature; the threshold is that of the human texts of the fit."""
    place = FEATURES.index(name)
    sign = -1 if name == "log_rank" else 1  # machine text has lower ranks
    own, ours, theirs = (sign * each[:, place] for each in (fitted, human, machine))
    return rates(ours, theirs, threshold_of(own))


def refusals(detector: Detector, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Of each set the fraction of texts, cut to the shortest length, that are not judged: of
    another language, or unlike the fitted ones; and of German and French novels."""
    words = round(WORDS_PER_TOKEN * detector.fits[0].tokens)
    found = {}
    for name, own in texts.items():
        starts = [" ".join(text.split()[:words]) for text in own]
        refused = sum(bool(unlike_reason(detector, start)) for start in starts)
        found[name] = {"num_texts": len(own), "refused": refused / len(own)}
    return found


def foreign_texts(data: Path, number: int, model: CausalLM) -> dict[str, list[str]]:
    """Texts of other languages than the fitted one."""
    return {
        genre: [each.text for each in excerpts(data, genre, "test", number, model.tokenizer)]
        for genre in FOREIGN_GENRES
    }


def make_texts(
    options: argparse.Namespace, own: Mapping[str, Mapping[str, Sequence[Excerpt]]]
) -> dict[str, list[str]]:
    """Generate what is missing, a generator after the other; the texts of each cell."""
    folders = {"smollm2": SCORING_MODEL, "sample": "sample"}
    folders |= {"student": options.student, "control": options.control}
    for name, folder in folders.items():
        work = [
            (cell, prompts_of(cell, own[cell.split], options.texts))
            for cell in CELLS
            if cell.generator == name
        ]
        complete = all(
            len(read_texts(options.folder, cell, options.texts)) == len(prompts)
            for cell, prompts in work
        )
        if complete or folder is None:
            continue
        precision = "fp32" if name == "sample" else options.precision
        model = load_at_precision(folder, precision, offline=True).model
        assert isinstance(model, CausalLM)
        print(f"{name}: {generate_missing(options.folder, model, work)} texts", flush=True)
    return {cell.name: read_texts(options.folder, cell, options.texts) for cell in CELLS}


def run(options: argparse.Namespace) -> tuple[dict[str, Any], Detector]:
    """The results, and the fitted detector."""
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = resolve_folder(SCORING_MODEL, offline=True)
    model = load_at_precision(folder, options.precision, offline=True).model
    assert isinstance(model, CausalLM)
    own = human_excerpts(options.data, options.human, model)
    texts = {**human_texts(own), **make_texts(options, own)}
    texts |= replaced_texts(texts)
    scores = FeatureFile(options.folder / f"features-{options.precision}.jsonl")
    for name, some in texts.items():
        scores.add(model, some)
        print(f"{name}: {len(some)} texts scored", flush=True)
    sets = {name: scores.of(some) for name, some in texts.items()}
    facts = {
        "command": " ".join(["python -m benchmarks.detect", *sys.argv[1:]]),
        "precision": options.precision,
        **measure.environment(),
    }
    detector = fitted(
        sets, texts["human-fit"], model_sha256=sha256_of_model(folder, model), protocol=facts
    )
    found = {
        **facts,
        "scoring_model": SCORING_MODEL,
        "fits": [each.model_dump(include=COUNTS) for each in detector.fits],
        "tests": test_results(detector, sets),
        "refused": refusals(detector, texts | foreign_texts(options.data, options.human, model)),
    }
    return found, detector


def fitted(sets: Mapping[str, Features], human_texts: Sequence[str], **facts: Any) -> Detector:
    """The detector of the human and machine texts that are for the fit."""
    machine = [cell.name for cell in CELLS if cell.split == "fit"]
    pairs = {
        length: (
            sets["human-fit"][length],
            np.concatenate([sets[name][length] for name in machine]),
        )
        for length in LENGTHS
    }
    return make_detector(
        pairs,
        human_texts,
        model=SCORING_MODEL,
        sources={"human": FITTED_GENRES, "machine": machine},
        **facts,
    )


COUNTS = {"tokens", "num_human", "num_machine", "threshold"}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--student", required=True, help="a student of SmolLM2")
    parser.add_argument("--control", required=True, help="its control")
    parser.add_argument("--texts", type=int, default=40, help="machine texts of each kind")
    parser.add_argument("--human", type=int, default=100, help="human texts of each genre")
    parser.add_argument("--precision", default="fp32", help="of SmolLM2 and its students")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--folder", type=Path, default=Path("runs/detect"))
    parser.add_argument("--output", type=Path, default=RESULTS / f"{SCORING_MODEL}.json")
    parser.add_argument("--detector", type=Path, help="the detector's file to write")
    options = parser.parse_args()
    try:
        found, detector = run(options)
    except StillhouseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    measure.write_result(options.output, found)
    if options.detector is not None:
        options.detector.write_text(detector.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
