"""The scores of tokens under a model: log-probability and rank, as the page's rank view shows them,
and what the model expected of the log-probability.

Axes: R rows, V vocabulary.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class TokenScores(NamedTuple):
    """For each row the token's log-probability in nats and the number of more likely tokens, and
    the log-probabilities of all tokens."""

    log_probability: Float[Tensor, " R"]
    rank: Int[Tensor, " R"]
    all_log_probabilities: Float[Tensor, "R V"]


def score_tokens(logits: Float[Tensor, "R V"], ids: Int[Tensor, " R"]) -> TokenScores:
    """Each token given those before it, from the model itself (without temperature or any other
    setting)."""
    log_probabilities = logits.log_softmax(-1)
    chosen = log_probabilities.gather(1, ids[:, None])
    ranks = (log_probabilities > chosen).sum(1)
    return TokenScores(chosen[:, 0], ranks, log_probabilities)


def expected_log_probability(
    log_probabilities: Float[Tensor, "R V"],
) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Mean and variance of log p(x) for x drawn from p itself; the mean is minus the entropy.

    Tokens of probability zero add nothing.
    """
    finite = log_probabilities.clamp(min=-1e4)  # 0 times minus infinity is not a number
    probabilities = finite.exp()
    mean = (probabilities * finite).sum(1)
    variance = (probabilities * (finite - mean[:, None]).square()).sum(1)
    return mean, variance
