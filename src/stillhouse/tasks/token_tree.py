"""Log-likelihoods of texts that begin alike, from one pass over the tokens they share.

The texts of an example (a question with each of its choices) form a tree: a token that follows the
same tokens in several texts is one node, computed once. A node attends to its ancestors and itself,
and its position is its depth, so each text is computed as if it were alone.

Axes: B trees, T nodes, P texts, K scored tokens, R rows, D hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.families.base import Head
from stillhouse.families.products import fast_products
from stillhouse.families.registry import family_of
from stillhouse.tasks.encoded import EncodedExample
from stillhouse.tasks.task import batches_by_length
from stillhouse.tokens.batches import IGNORED, Batch

# Rows and tokens whose logits are in memory: 4 MB, a CPU's cache; on a GPU all tokens of a row.
LOGITS_AT_ONCE = {"cpu": (256, 4_096), "cuda": (1_024, 2**20)}
# On a CPU the hidden states of a batch stay in its cache: 1,024 take a quarter longer each.
BATCH_TOKENS = {"cpu": 256, "cuda": 65_536}


@dataclass(frozen=True)
class TokenTree:
    """Token sequences that share their beginnings.

    Scored token k is `tokens[k]` after node `nodes[k]`, of the text `texts[k]`. The last token of a
    text is scored and not read.
    """

    ids: Int[np.ndarray, " T"]
    parents: Int[np.ndarray, " T"]
    depths: Int[np.ndarray, " T"]
    nodes: Int[np.ndarray, " K"]
    tokens: Int[np.ndarray, " K"]
    texts: Int[np.ndarray, " K"]
    num_texts: int

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], num_scored: Sequence[int]) -> "TokenTree":
        """The tree of some sequences.

        Args:
            num_scored: For each sequence the number of its last tokens that are scored, fewer than
                it has.
        """
        places: dict[tuple[int, int], int] = {}
        read: list[tuple[int, int, int]] = []
        scored: list[tuple[int, int, int]] = []
        for text, (ids, number) in enumerate(zip(sequences, num_scored, strict=True)):
            assert 0 < number < len(ids)
            node = -1
            for depth, token in enumerate(ids):
                if depth >= len(ids) - number:
                    scored.append((node, token, text))
                if depth < len(ids) - 1:
                    parent, node = node, places.setdefault((node, token), len(read))
                    if node == len(read):
                        read.append((token, parent, depth))
        ids, parents, depths = np.array(read, np.int64).T
        nodes, tokens, texts = np.array(scored, np.int64).T
        return cls(ids, parents, depths, nodes, tokens, texts, len(sequences))

    def visible(self) -> Bool[np.ndarray, "T T"]:
        """True where a node (first axis) attends to a node: its ancestors and itself."""
        seen = np.eye(len(self.ids), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


@dataclass(frozen=True)
class TreeBatch(Batch):
    """Trees padded to the same number of nodes; rows that are predicted have a scored token."""

    seen: Bool[Tensor, "B T T"] = field(kw_only=True)

    def visible(self) -> Bool[Tensor, "B T T"]:
        return self.seen

    @classmethod
    def of(cls, trees: Sequence[TokenTree], device: torch.device) -> "TreeBatch":
        """The batch of some trees."""
        shape = len(trees), max(len(tree.ids) for tree in trees)
        ids, segments, positions = (np.zeros(shape, np.int64) for _ in range(3))
        labels = np.full(shape, IGNORED, np.int64)
        seen = np.broadcast_to(np.eye(shape[1], dtype=bool), (*shape, shape[1])).copy()
        for row, tree in enumerate(trees):
            size = len(tree.ids)
            ids[row, :size], positions[row, :size] = tree.ids, tree.depths
            segments[row, :size], seen[row, :size, :size] = 1, tree.visible()
            labels[row, tree.nodes] = tree.tokens
        arrays = (ids, labels, segments, positions)
        return cls(
            *(torch.from_numpy(array).to(device) for array in arrays),
            causal=True,
            uniform=False,
            seen=torch.from_numpy(seen).to(device),
        )


def encode_texts(
    texts: Sequence[tuple[Sequence[int], int]], max_length: int, window: int | None
) -> list[EncodedExample]:
    """The texts of an example as sequences that share what they can: all in one tree; a tree for
    each where attention has a window that counts the tokens between, as those of other texts are.

    Args:
        texts: The tokens of each, and the number of its last ones that are scored.
        max_length: Tokens that a model reads; a longer text loses its beginning.
        window: Of the model's attention.
    """
    longest = max_length + 1  # the last token is not read
    kept = [ids[-longest:] for ids, _ in texts]
    scored = [min(number, longest - 1) for _, number in texts]
    whole = TokenTree.of(kept, scored)
    trees = [whole]
    if window is not None and len(whole.ids) > window:
        trees = [TokenTree.of([ids], [n]) for ids, n in zip(kept, scored, strict=True)]
    is_truncated = any(len(ids) > longest for ids, _ in texts)
    return [
        EncodedExample(
            tree.ids,
            np.zeros_like(tree.ids),
            np.array(IGNORED),
            is_truncated=is_truncated and place == 0,
            source=tree,
        )
        for place, tree in enumerate(trees)
    ]


def all_log_likelihoods(
    model: PreTrainedModel, sequences: Sequence[EncodedExample]
) -> list[Float[Tensor, " _"]]:
    """For each of the sequences of `encode_texts` the log-likelihoods of its texts, in nats."""
    found: dict[int, Tensor] = {}
    for places in batches_by_length(sequences, BATCH_TOKENS[model.device.type]):
        trees = [sequences[place].source for place in places]
        found |= dict(zip(places, log_likelihoods(model, trees), strict=True))
    return [found[place] for place in range(len(sequences))]


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel, trees: Sequence[TokenTree]
) -> list[Float[Tensor, " _"]]:
    """For each text of each tree the sum of its scored tokens' log-probabilities, in nats."""
    family, batch = family_of(model.config), TreeBatch.of(trees, model.device)
    head = family.head(model)
    with fast_products(model.device):
        features = head.transform(family.run_rows(model, batch, "predicted"))
        row_of = torch.full_like(batch.labels, -1).flatten()
        row_of[batch.row_numbers("predicted")] = torch.arange(len(features), device=model.device)
        rows, tokens, texts = _scored(trees, row_of.view(batch.labels.shape).cpu().numpy())
        log_probabilities = _log_probabilities(head, features, rows, tokens)
    sums = torch.zeros(sum(tree.num_texts for tree in trees), dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(texts), log_probabilities.double().cpu())
    return list(sums.split([tree.num_texts for tree in trees]))


def _log_probabilities(
    head: Head,
    features: Float[Tensor, "R D"],
    rows: Int[np.ndarray, " K"],
    tokens: Int[np.ndarray, " K"],
) -> Float[Tensor, " K"]:
    """Of each scored token, given its row; some rows and a part of the vocabulary at a time.

    Its logit is one of those that are normalized, so that in bfloat16 too none is above zero.
    """
    num_rows, num_tokens = LOGITS_AT_ONCE[features.device.type]
    found = features.new_empty(len(rows), dtype=torch.float32)
    normalizers = []
    for at, own in enumerate(features.split(num_rows)):
        sums = []
        for place, part in enumerate(_parts(head, num_tokens)):
            logits = part.logits(own).float()
            here = np.flatnonzero((rows // num_rows == at) & (tokens // num_tokens == place))
            found[here] = logits[rows[here] % num_rows, tokens[here] % num_tokens]
            sums.append(logits.logsumexp(-1))
        normalizers.append(torch.stack(sums).logsumexp(0))
    return found - torch.cat(normalizers)[rows]


def _parts(head: Head, num_tokens: int) -> Iterator[Head]:
    """The head for a few tokens at a time."""
    weights = head.weight.split(num_tokens)
    biases = [None] * len(weights) if head.bias is None else head.bias.split(num_tokens)
    for weight, bias in zip(weights, biases, strict=True):
        yield replace(head, weight=weight, bias=bias)


def _scored(
    trees: Sequence[TokenTree], row_of: Int[np.ndarray, "B T"]
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """The scored tokens of all trees: row, token, and text counted over the trees."""
    firsts = np.cumsum([0, *(tree.num_texts for tree in trees)])
    rows = np.concatenate([row_of[place, tree.nodes] for place, tree in enumerate(trees)])
    tokens = np.concatenate([tree.tokens for tree in trees])
    texts = np.concatenate([tree.texts + firsts[place] for place, tree in enumerate(trees)])
    return rows, tokens, texts
