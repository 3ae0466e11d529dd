"""Confidence intervals of the difference of two models' losses on a text: a paired bootstrap.

The difficulty of a document is common to both models, so documents are resampled with both losses
together (Efron 1979; Koehn 2004 for text).

Axes: U units of text (documents, or blocks where these are few), D resamples.
"""

import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

from stillhouse.evaluation.perplexity import UnitLosses
from stillhouse.tasks.metrics import CONFIDENCE, RESAMPLES

FEWEST_UNITS = 10  # with fewer, resamples do not represent the text: no interval


def difference(one: UnitLosses, other: UnitLosses, *, seed: int = 0) -> dict[str, float | None]:
    """The loss of `one` minus that of `other`, in nats per token, with its 95 % interval.

    `low` and `high` are None where the text has too few units; all three where a loss is not
    finite.
    """
    if one.mean is None or other.mean is None:
        return {"value": None, "low": None, "high": None}
    value = one.mean - other.mean
    if len(one.tokens) < FEWEST_UNITS:
        return {"value": value, "low": None, "high": None}
    low, high = paired_interval(one.sums - other.sums, one.tokens, seed=seed)
    return {"value": value, "low": low, "high": high}


def paired_interval(
    differences: Float[np.ndarray, " U"], tokens: Int[np.ndarray, " U"], *, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of sum(differences) / sum(tokens) over resampled units.

    The quantiles are those of the expanded percentile interval (Hesterberg 2015, section 3.4): the
    plain one is too narrow for few units.
    """
    num_units = len(tokens)
    generator = np.random.default_rng(seed)
    times_drawn = generator.multinomial(num_units, np.full(num_units, 1 / num_units), RESAMPLES)
    draws = (times_drawn @ differences) / (times_drawn @ tokens)
    tail = _tail(num_units)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _tail(num_units: int) -> float:
    """The tail probability on each side: Phi(-t * sqrt(n / (n - 1))), t Student's quantile.

    t by its expansion in 1 / (n - 1) (Abramowitz and Stegun 26.7.5), to 0.001 from n = 10 on.
    """
    z, freedom = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), num_units - 1
    t = (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
    return NormalDist().cdf(-t * math.sqrt(num_units / freedom))
