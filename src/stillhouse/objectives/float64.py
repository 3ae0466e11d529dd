"""Arithmetic of the references that losses are compared with: float64, one row at a time.

A reference is the textbook formula and nothing else, slow on purpose: it shares no code with the
loss, and is written from the paper. `stillhouse verify` sums it over rows of the user's own text.

Axes: V vocabulary, classes or hidden size.
"""

import math

import numpy as np

Row = np.ndarray  # one axis: the logits or the hidden state of a row


def log_softmax(logits: Row, temperature: float = 1.0) -> Row:
    """log softmax(logits / temperature), shifted by the largest logit so that nothing overflows."""
    scaled = logits.astype(np.float64) / temperature
    shifted = scaled - scaled.max()
    return shifted - math.log(np.exp(shifted).sum())


def kl(log_p: Row, log_q: Row) -> float:
    """KL(p || q) in nats, from logarithms."""
    return math.fsum(np.exp(log_p) * (log_p - log_q))


def mean_square(student: Row, teacher: Row, **_: float) -> float:
    """Mean over V of (s - t)^2, at any temperature."""
    return math.fsum((student.astype(np.float64) - teacher) ** 2) / len(student)
