"""A detector of machine text: fitted on texts of both kinds, saved as JSON, and what it answers.

For each fitted length there is one regression on the features of texts cut to that length; a text
is judged by that of the longest fitted length it has, on all its tokens. Its threshold is the
log-odds that at most 1 % of human texts like the fitted ones exceed: of n human texts, each scored
by a regression of the other folds, the one of rank ceil(0.99 * (n + 1)) (split conformal
prediction: Vovk et al. 2005, section 4.2), so at least 99 are needed.

It answers "cannot tell" of a text that is too short, of another language than the fitted human
texts, or unlike them, such as code: too few of its words are among their most frequent ones, such
as "the" and "of".

Axes: N texts, H human texts, M machine texts, F features.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stillhouse.data.language import language_of
from stillhouse.detection.features import FEATURES, TokenStatistics, features_of
from stillhouse.detection.logistic import Logistic, fit_logistic, sigmoid
from stillhouse.errors import DataError
from stillhouse.wording import counted

PACKAGED = Path(__file__).with_name("smollm2.json")
FALSE_POSITIVES = 0.01
# Texts of a length: with fewer human ones, no threshold for 1 % can be given.
FEWEST = {"human": 99, "machine": 20}
FOLDS = 5
NUM_COMMON_WORDS = 50
WORD = re.compile(r"[^\W\d_]+")
Verdict = Literal["machine", "not machine", "cannot tell"]
Pair = tuple[Float[np.ndarray, "H F"], Float[np.ndarray, "M F"]]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LengthFit(_File):
    """The regression for texts of a length, and the numbers of texts it was fitted on.

    Attributes:
        tokens: The length, in tokens of the scoring model.
        threshold: Log-odds; above it, a text is said to be machine text.
    """

    tokens: int
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    threshold: float
    num_human: int
    num_machine: int

    def log_odds(self, features: Float[np.ndarray, "N F"]) -> Float[np.ndarray, " N"]:
        """The log-odds of machine text, where half of all texts are."""
        mean, scale, coefficients = map(np.array, (self.mean, self.scale, self.coefficients))
        return Logistic(mean, scale, coefficients, self.intercept).log_odds(features)


class Detector(_File):
    """The content of a detector's file.

    Attributes:
        model: Name of the scoring model.
        model_sha256: Of its weights and vocabulary.
        language: Of the human texts (ISO 639-1); None where it is not known, as of code.
        common_words: The most frequent words of the human texts.
        fewest_common: Fraction of a text's words that must be among them.
        fits: By ascending length.
        sources: The files of human and of machine text.
        protocol: How it was made: commit, versions, and more.
    """

    version: Literal[1] = 1
    model: str
    model_sha256: str
    language: str | None
    features: tuple[str, ...] = FEATURES
    common_words: tuple[str, ...]
    fewest_common: float
    fits: Annotated[tuple[LengthFit, ...], Field(min_length=1)]
    sources: Mapping[str, Sequence[str]]
    protocol: Mapping[str, Any]

    def fit_for(self, num_tokens: int) -> LengthFit | None:
        """The regression of the longest fitted length that a text has, or None."""
        found = [each for each in self.fits if each.tokens <= num_tokens]
        return found[-1] if found else None


@dataclass(frozen=True)
class Judgment:
    """What a detector says of a text.

    Attributes:
        reason: Why it cannot tell.
        probability: Of machine text, if half of all texts were.
        threshold: Probability above which the verdict is machine text: 1 % of human texts like the
            fitted ones are.
        fitted_tokens: The length of the texts that the regression was fitted on.
    """

    verdict: Verdict
    num_tokens: int
    reason: str = ""
    probability: float | None = None
    threshold: float | None = None
    fitted_tokens: int | None = None


def read_detector(path: Path | None) -> Detector:
    """A detector's file; the packaged one of smollm2 where none is given.

    Raises:
        DataError: no such file, or not a detector of this version.
    """
    path = path or PACKAGED
    try:
        found = Detector.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"The detector {path} cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise DataError(
            f"{path} is not a detector of this version of Stillhouse ({where}: {first['msg']}). "
            "Fit it again with `stillhouse fit-detector`."
        ) from error
    sizes = {len(each.coefficients) for each in found.fits}
    if found.features != FEATURES or sizes != {len(FEATURES)}:
        raise DataError(
            f"{path} was fitted on the features {', '.join(found.features)}; this version computes "
            f"{', '.join(FEATURES)}. Fit it again with `stillhouse fit-detector`."
        )
    return found


def judge(detector: Detector, text: str, tokens: TokenStatistics) -> Judgment:
    """What the detector says of a text with these statistics."""
    fit = detector.fit_for(len(tokens))
    if fit is None:
        shortest = detector.fits[0].tokens
        return Judgment(
            "cannot tell",
            len(tokens),
            f"it has {counted(len(tokens), 'token')}; the shortest fitted texts have {shortest}",
        )
    if reason := unlike_reason(detector, text):
        return Judgment("cannot tell", len(tokens), reason)
    log_odds = float(fit.log_odds(features_of(tokens)[None])[0])
    probability, threshold = sigmoid(np.array([log_odds, fit.threshold])).tolist()
    verdict = "machine" if log_odds > fit.threshold else "not machine"
    return Judgment(verdict, len(tokens), "", probability, threshold, fit.tokens)


def unlike_reason(detector: Detector, text: str) -> str:
    """Why a text is not like the fitted ones; empty if it is."""
    language = language_of(text)
    if None not in (language, detector.language) and language != detector.language:
        return (
            f"its language seems to be {language}, and the detector was fitted on "
            f"{detector.language}"
        )
    share = common_share(text, detector.common_words)
    if share < detector.fewest_common:
        return (
            f"it does not read like the fitted texts: {share:.0%} of its words are among their "
            f"{len(detector.common_words)} most frequent ones, and {detector.fewest_common:.0%} "
            "are needed"
        )
    return ""


def fit_length(tokens: int, human: np.ndarray, machine: np.ndarray) -> LengthFit:
    """The regression for a length, with its threshold.

    Args:
        human: Features of human texts cut to this length, (H, F).
        machine: Features of machine texts, (M, F).

    Raises:
        DataError: too few texts.
    """
    check_number("human", len(human), tokens)
    check_number("machine", len(machine), tokens)
    features = np.concatenate([human, machine])
    is_machine = np.arange(len(features)) >= len(human)
    held_out = _held_out_log_odds(features, is_machine)
    found = fit_logistic(features, is_machine)
    return LengthFit(
        tokens=tokens,
        mean=tuple(found.mean.tolist()),
        scale=tuple(found.scale.tolist()),
        coefficients=tuple(found.coefficients.tolist()),
        intercept=found.intercept,
        threshold=threshold_of(held_out[~is_machine]),
        num_human=len(human),
        num_machine=len(machine),
    )


def check_number(kind: str, number: int, tokens: int) -> None:
    """Raises:
    DataError: too few texts of this kind, human or machine.
    """
    if number < FEWEST[kind]:
        raise DataError(
            f"{counted(number, f'{kind} text')} {'has' if number == 1 else 'have'} "
            f"{counted(tokens, 'token')} or more; at least {FEWEST[kind]} are needed. Give more or "
            "longer texts (each file or record is one), or leave this length out of --lengths."
        )


def _held_out_log_odds(
    features: Float[np.ndarray, "N F"], is_machine: Bool[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """The log-odds of each text by a regression of the other folds."""
    fold = np.arange(len(features)) % FOLDS
    found = np.zeros(len(features))
    for number in range(FOLDS):
        own = fold == number
        found[own] = fit_logistic(features[~own], is_machine[~own]).log_odds(features[own])
    return found


def threshold_of(human: Float[np.ndarray, " H"]) -> float:
    """The score that a further human text exceeds with at most 1 % probability."""
    place = math.ceil((1 - FALSE_POSITIVES) * (len(human) + 1) - 1e-9)
    return float(np.sort(human)[place - 1])


def common_words_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The most frequent words, the first most frequent."""
    counts = Counter(word for text in texts for word in WORD.findall(text.lower()))
    return tuple(word for word, _ in counts.most_common(NUM_COMMON_WORDS))


def common_share(text: str, common: Sequence[str]) -> float:
    """The fraction of a text's words that are among the common ones; 0 without words."""
    words = WORD.findall(text.lower())
    known = frozenset(common)
    return sum(word in known for word in words) / len(words) if words else 0.0


def fewest_common(texts: Sequence[str], common: Sequence[str], num_words: int) -> float:
    """Half of the fraction of common words that 99 % of human texts of this length have."""
    starts = (" ".join(text.split()[:num_words]) for text in texts)
    return float(np.quantile([common_share(text, common) for text in starts], 0.01)) / 2
