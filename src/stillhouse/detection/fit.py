"""Fits a detector on files of human and of machine text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.data.documents import read_documents
from stillhouse.data.language import main_language
from stillhouse.data.settings import CorpusRecipe
from stillhouse.detection.detector import (
    Detector,
    Pair,
    check_number,
    common_words_of,
    fewest_common,
    fit_length,
)
from stillhouse.detection.features import (
    check_scoring_model,
    features_at,
    token_statistics,
)
from stillhouse.errors import OptionError
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.load import load
from stillhouse.machine import describe_machine, library_versions, source_commit
from stillhouse.models.folder_check import WEIGHTS
from stillhouse.models.hub import resolve_folder
from stillhouse.runs.manifest import fingerprint, sha256_of
from stillhouse.training.device import pick_device

SHORTEST = 10  # tokens: of fewer, the features say next to nothing
WORDS_PER_TOKEN = 0.7  # of English prose: the words of the shortest texts


def parse_lengths(text: str) -> list[int]:
    """Lengths such as "50,150,500", ascending.

    Raises:
        OptionError: something else, or lengths of fewer than 10 tokens.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= SHORTEST for part in parts):
        raise OptionError(
            f"--lengths is {text!r}; it must be whole numbers of {SHORTEST} or more, such as "
            "50,150,500."
        )
    return sorted({int(part) for part in parts})


def sha256_of_model(folder: Path, model: CausalLM) -> str:
    """What tells a scoring model from others: its weights and vocabulary, not where they are."""
    weights = [sha256_of(file) for file in sorted(folder.glob(WEIGHTS))]
    return fingerprint({"weights": weights, "vocabulary": model.tokenizer.get_vocab()})


def make_detector(
    features: Mapping[int, Pair], human_texts: Sequence[str], **facts: Any
) -> Detector:
    """A detector from the features of human and machine texts at each length.

    Args:
        human_texts: Their language and frequent words are the fitted ones.
        facts: The other attributes of the detector.

    Raises:
        DataError: too few texts of a length.
    """
    fits = tuple(fit_length(length, *features[length]) for length in sorted(features))
    common = common_words_of(human_texts)
    num_words = round(WORDS_PER_TOKEN * fits[0].tokens)
    fewest = fewest_common(human_texts, common, num_words)
    return Detector(
        language=main_language(human_texts),
        common_words=common,
        fewest_common=fewest,
        fits=fits,
        **facts,
    )


def fit_detector(
    sources: Mapping[str, Sequence[str]],
    model_name: str,
    *,
    lengths: Sequence[int],
    offline: bool,
) -> Detector:
    """Fit a detector on the documents of files, each cut to the lengths that it has.

    Args:
        sources: Files, globs or datasets of `human` and of `machine` text, as `corpus.source`.
        lengths: In tokens of the scoring model.

    Raises:
        DataError: files that cannot be read, or too few texts.
        ModelError: a scoring model that is not a causal language model.
    """
    longest = max(lengths)
    texts = {
        kind: _read_texts(own, num_words=longest, offline=offline) for kind, own in sources.items()
    }
    for kind, own in texts.items():
        check_number(kind, len(own), 1)
    folder = resolve_folder(model_name, offline=offline)
    model = check_scoring_model(load(folder, device=pick_device()), model_name)
    statistics = {kind: token_statistics(model, own) for kind, own in texts.items()}
    features = {
        length: (
            features_at(statistics["human"], length),
            features_at(statistics["machine"], length),
        )
        for length in lengths
    }
    return make_detector(
        features,
        texts["human"],
        model=model_name,
        model_sha256=sha256_of_model(folder, model),
        sources={kind: list(own) for kind, own in sources.items()},
        protocol={
            "commit": source_commit(),
            "versions": library_versions(),
            "machine": describe_machine(),
        },
    )


def _read_texts(sources: Sequence[str], *, num_words: int, offline: bool) -> list[str]:
    """The documents' first words; one word is at least one token, so they suffice."""
    found: dict[str, list[str]] = {}
    for chunk in read_documents(CorpusRecipe(source=list(sources)), offline=offline):
        words = found.setdefault(chunk.document_id, [])
        words += chunk.text.split()[: num_words - len(words)]
    return [" ".join(words) for words in found.values()]
