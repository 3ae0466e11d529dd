"""Agreement with the teacher by how frequent a token is, and by its position.

Bins of frequency are decades of the target token's count in the training split: 0, 1 to 9, 10 to
99, and so on; bins of position double: 0 to 15, 16 to 31, 32 to 63, ... of the sequence. Each bin
has the number of its tokens, the top-1 agreement, and the mean of

    KL(teacher || model) = sum over V of p * (log p - log q)    in nats

Axes: N predicted tokens, R rows of a chunk, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SMALLEST_POSITION_BIN = 16


@dataclass
class RowAgreement:
    """What is known of each predicted token, chunk by chunk: whether both models have the same most
    likely prediction, and their divergence in nats."""

    same: list[Bool[Tensor, " R"]] = field(default_factory=list)
    divergence: list[Float[Tensor, " R"]] = field(default_factory=list)

    def add(self, p_logits: Float[Tensor, "R V"], q_logits: Float[Tensor, "R V"]) -> None:
        """The next chunk's logits, the teacher's and the model's."""
        self.same.append((p_logits.argmax(-1) == q_logits.argmax(-1)).cpu())
        self.divergence.append(divergences(p_logits, q_logits).cpu())

    def by_bin(self, values: Int[np.ndarray, " N"], edges: Sequence[int]) -> list[dict[str, Any]]:
        """The agreement of the tokens in each bin; bins without tokens are left out.

        Args:
            values: Of each token, such as its position.
            edges: Ascending; a bin goes from one to the next, which is not part of it, and the last
                one has no end.
        """
        numbers = np.searchsorted(edges, values, side="right") - 1
        same = torch.cat(self.same).numpy().astype(np.float64)
        divergence = torch.cat(self.divergence).double().numpy()
        return [
            {
                "low": edges[number],
                "high": edges[number + 1] if number + 1 < len(edges) else None,
                "tokens": int(members.sum()),
                "top1_agreement": float(same[members].mean()),
                "kl": float(divergence[members].mean()),
            }
            for number in range(len(edges))
            if (members := numbers == number).any()
        ]


def divergences(
    p_logits: Float[Tensor, "R V"], q_logits: Float[Tensor, "R V"]
) -> Float[Tensor, " R"]:
    """KL(p || q) of each row, in nats."""
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def frequency_edges(counts: Int[np.ndarray, " N"]) -> list[int]:
    """0, 1, 10, 100, ... up to the largest count."""
    edges, largest = [0, 1], int(counts.max(initial=0))
    while edges[-1] * 10 <= largest:
        edges.append(edges[-1] * 10)
    return edges


def position_edges(length: int) -> list[int]:
    """0, 16, 32, 64, ... below the sequence length."""
    edges = [0, SMALLEST_POSITION_BIN]
    while edges[-1] * 2 < length:
        edges.append(edges[-1] * 2)
    return edges
