"""What a causal language model predicts of a text, in numbers that differ between human and machine
text: all from one forward pass.

With p_t the model's distribution at token t of T, x_t the token, r_t = 1 + the number of tokens
that are more likely, and l_t = log p_t(x_t) in nats:

    log_probability   mean of l_t
    log_rank          mean of log r_t
    top_1, top_10, top_100   fraction of tokens with r_t up to 1, 10, 100 (GLTR: Gehrmann et al.
                      2019, section 3)
    lrr               -sum of l_t / sum of log r_t, the log-likelihood log-rank ratio (Su et al.
                      2023, equation 3)
    entropy           mean entropy of p_t
    curvature         sum of (l_t - E_t) / sqrt(sum of V_t) / sqrt(T), with E_t and V_t the mean and
                      variance of log p_t(x) for x drawn from p_t: the sampling discrepancy of
                      Fast-DetectGPT (Bao et al. 2024, section 2, with the scoring model as the
                      sampling model), per square root of a token, so that its size does not depend
                      on the length

Layout is not scored: runs of white space count as one space.

A text longer than `CONTEXT` tokens is scored in windows, each token after at least half of that
many; memory does not grow with the text but for four numbers a token.

Axes: N texts, T tokens, R rows, V vocabulary, F features.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.errors import ModelError
from stillhouse.evaluation.perplexity import (
    Observer,
    batches_of,
    stride_of,
    window_losses,
    windows_of,
)
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.engine.batcher import NotFiniteError
from stillhouse.inference.engine.kv_cache import IMPOSSIBLE
from stillhouse.inference.loaded import LoadedModel
from stillhouse.inference.token_scores import expected_log_probability, score_tokens
from stillhouse.tokens.tokenizer import special_tokens

FEATURES = (
    "log_probability",
    "log_rank",
    "top_1",
    "top_10",
    "top_100",
    "lrr",
    "entropy",
    "curvature",
)
CONTEXT = 1_024  # tokens of a window, with the document start
ROWS_AT_ONCE = 256  # of logits, of which five copies are in memory
SMALLEST = 1e-9  # of a divisor: a text of top choices alone


@dataclass(frozen=True)
class TokenStatistics:
    """Of each token its log-probability in nats, its rank from 1, and the mean and variance of the
    log-probability under the model's own distribution."""

    log_probability: Float[np.ndarray, " T"]
    rank: Float[np.ndarray, " T"]
    expected: Float[np.ndarray, " T"]
    variance: Float[np.ndarray, " T"]

    def __len__(self) -> int:
        return len(self.rank)

    def first(self, number: int) -> "TokenStatistics":
        """Those of the first tokens, which do not depend on the later ones."""
        return TokenStatistics(*(values[:number] for values in vars(self).values()))


def plain_text(text: str) -> str:
    """The text as it is scored: white space is single spaces."""
    return " ".join(text.split())


def check_scoring_model(model: LoadedModel, name: str) -> CausalLM:
    """Raises:
    ModelError: no causal language model.
    """
    if isinstance(model, CausalLM):
        return model
    raise ModelError(
        f"{name} is a model for {model.pipeline_task}; a scoring model must be a causal language "
        "model, such as smollm2."
    )


def token_statistics(model: CausalLM, texts: Sequence[str]) -> list[TokenStatistics]:
    """The statistics of each text's tokens, in float64, the texts in batches of similar length.

    Raises:
        DataError: a lone surrogate.
        NotFiniteError: the model's logits are not finite.
    """
    start = special_tokens(model.tokenizer, "causal").document_start
    assert start is not None
    context = min(CONTEXT, model.context)
    cut, owners = [], []
    for owner, text in enumerate(texts):
        ids = np.array(model.encode(plain_text(text)), np.int64)
        own = list(windows_of([ids], context, stride_of(context), start))
        cut += own
        owners += [owner] * len(own)
    rows: list[Tensor] = []
    unused = torch.tensor(model.unused_ids, dtype=torch.long, device=model.model.device)

    def keep(logits: Float[Tensor, "R V"], labels: Tensor) -> None:
        rows.append(
            _rows(logits.index_fill(1, unused, IMPOSSIBLE) if len(unused) else logits, labels)
        )

    observer = Observer(chunk=keep)
    window_losses(model.family, model.model, cut, observer=observer)
    return _by_text(rows, cut, owners, len(texts))


def _rows(logits: Float[Tensor, "R V"], labels: Tensor) -> Float[Tensor, "R 4"]:
    """The four numbers of each row, a few rows at once."""
    found = []
    for some, own in zip(logits.split(ROWS_AT_ONCE), labels.split(ROWS_AT_ONCE), strict=True):
        value, rank, log_probabilities = score_tokens(some, own)
        mean, variance = expected_log_probability(log_probabilities)
        found.append(torch.stack([value, rank + 1.0, mean, variance], 1).double().cpu())
    return torch.cat(found)


def _by_text(
    rows: Sequence[Float[Tensor, "_ 4"]],
    windows: Sequence[tuple[np.ndarray, int]],
    owners: Sequence[int],
    num_texts: int,
) -> list[TokenStatistics]:
    """The rows of each text in order; they come in the order of the batches."""
    order = [number for batch in batches_of(windows) for number in batch]
    values = torch.cat([*rows, torch.zeros(0, 4, dtype=torch.float64)])
    if not values.isfinite().all():
        raise NotFiniteError
    parts = values.split([windows[number][1] for number in order])
    by_window = dict(zip(order, parts, strict=True))
    own: list[list[Tensor]] = [[torch.zeros(0, 4, dtype=torch.float64)] for _ in range(num_texts)]
    for number, owner in enumerate(owners):
        own[owner].append(by_window[number])
    return [TokenStatistics(*torch.cat(each).numpy().T) for each in own]


def features_of(tokens: TokenStatistics) -> Float[np.ndarray, " F"]:
    """The features of a text of at least one token, in the order of `FEATURES`."""
    log_rank = np.log(tokens.rank)
    surplus = (tokens.log_probability - tokens.expected).sum()
    spread = max(float(np.sqrt(tokens.variance.sum() * len(tokens))), SMALLEST)
    return np.array(
        [
            tokens.log_probability.mean(),
            log_rank.mean(),
            *((tokens.rank <= limit).mean() for limit in (1, 10, 100)),
            -tokens.log_probability.sum() / max(float(log_rank.sum()), SMALLEST),
            -tokens.expected.mean(),
            surplus / spread,
        ]
    )


def features_at(texts: Iterable[TokenStatistics], length: int) -> Float[np.ndarray, "N F"]:
    """The features of the first tokens of the texts that have as many."""
    rows = [features_of(each.first(length)) for each in texts if len(each) >= length]
    return np.array(rows).reshape(-1, len(FEATURES))
