"""Reference losses in float64, one row at a time: the textbook formula and nothing else.

Written from the papers and not from `objectives`, whose losses are compared with these. Each takes
the logits (or hidden states, or vectors) of one row and returns that row's loss. Slow on purpose.

Axes: V vocabulary or classes, D hidden size.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Row = np.ndarray  # float64, one axis


def log_softmax(logits: Row, temperature: float = 1.0) -> Row:
    """log softmax(logits / temperature), shifted by the largest logit so that nothing overflows."""
    scaled = logits.astype(np.float64) / temperature
    shifted = scaled - scaled.max()
    return shifted - math.log(np.exp(shifted).sum())


def kl(log_p: Row, log_q: Row) -> float:
    """KL(p || q) in nats, from logarithms."""
    return math.fsum(np.exp(log_p) * (log_p - log_q))


def soft_target(student: Row, teacher: Row, temperature: float, **_: float) -> float:
    """T^2 KL(teacher || student). Hinton et al. 2015, section 2."""
    return temperature**2 * kl(log_softmax(teacher, temperature), log_softmax(student, temperature))


def reverse_kl(student: Row, teacher: Row, temperature: float, **_: float) -> float:
    """T^2 KL(student || teacher). Gu et al. 2024, section 2.1."""
    return temperature**2 * kl(log_softmax(student, temperature), log_softmax(teacher, temperature))


def jsd(student: Row, teacher: Row, temperature: float, *, beta: float, **_: float) -> float:
    """T^2 (beta KL(p || m) + (1 - beta) KL(q || m)), m the mixture. Agarwal et al. 2024."""
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    log_m = np.log(beta * np.exp(log_p) + (1 - beta) * np.exp(log_q))
    return temperature**2 * (beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m))


def skew_kl(student: Row, teacher: Row, temperature: float, *, alpha: float, **_: float) -> float:
    """T^2 KL(p || alpha p + (1 - alpha) q). Ko et al. 2024, section 3.1."""
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    log_m = np.log(alpha * np.exp(log_p) + (1 - alpha) * np.exp(log_q))
    return temperature**2 * kl(log_p, log_m)


def total_variation(student: Row, teacher: Row, temperature: float, **_: float) -> float:
    """Half of sum |p - q|. Wen et al. 2023, section 3."""
    p, q = (np.exp(log_softmax(row, temperature)) for row in (teacher, student))
    return 0.5 * math.fsum(np.abs(p - q))


def logit_mse(student: Row, teacher: Row, temperature: float, **_: float) -> float:
    """Mean over V of (s - t)^2."""
    return math.fsum((student.astype(np.float64) - teacher) ** 2) / len(student)


def hidden_cosine(student: Row, teacher: Row, temperature: float, **_: float) -> float:
    """1 - cos(h_s, h_t). Sanh et al. 2019, section 3."""
    ours, theirs = student.astype(np.float64), teacher.astype(np.float64)
    return 1 - float(ours @ theirs) / math.sqrt(float(ours @ ours) * float(theirs @ theirs))


def hidden_mse(student: Row, teacher: Row, temperature: float, **_: float) -> float:
    """Mean over D of (h_s - h_t)^2."""
    return math.fsum((student.astype(np.float64) - teacher) ** 2) / len(student)


def cross_entropy(logits: Row, label: int) -> float:
    """-log softmax(logits)[label] in nats."""
    return -float(log_softmax(logits)[label])


def binary_soft_target(student: Row, teacher: Row, temperature: float, **_: float) -> float:
    """T^2 times the sum of KL(teacher || student) over labels that each hold or not."""
    total = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        yes_or_no = [np.array([0.0, logit]) for logit in (t, s)]
        total.append(kl(*(log_softmax(pair, temperature) for pair in yes_or_no)))
    return temperature**2 * math.fsum(total)


# By the divergence's name.
REFERENCES: dict[str, Callable[..., float]] = {
    each.__name__: each
    for each in (
        soft_target,
        reverse_kl,
        jsd,
        skew_kl,
        total_variation,
        logit_mse,
        hidden_cosine,
        hidden_mse,
    )
}


def sum_over_rows(
    reference: Callable[..., float],
    student: np.ndarray,
    teacher: np.ndarray,
    temperature: float,
    **settings: Any,
) -> float:
    """The reference summed over rows; both sides are (N, V) or (N, D)."""
    rows = zip(student, teacher, strict=True)
    return math.fsum(reference(ours, theirs, temperature, **settings) for ours, theirs in rows)


def top_k_kl(student: Row, ids: Sequence[int], teacher: Row, temperature: float) -> float:
    """KL over the tokens `ids` and one outcome for all others, in nats."""
    p, q = (np.exp(log_softmax(row, temperature)) for row in (teacher, student))
    kept = np.asarray(ids)
    ours, theirs = (
        np.append(row[kept], math.fsum(np.delete(row, kept))) for row in (q, p)
    )  # the last one: all other tokens together
    held = theirs > 0
    return math.fsum(theirs[held] * (np.log(theirs[held]) - np.log(ours[held])))
