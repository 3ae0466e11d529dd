"""datatrove's stages of MinHash with their default settings, in one process."""

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.word_tokenizers import WordTokenizer
from loguru import logger

logger.disable("datatrove")


class SpaceTokenizer(WordTokenizer):
    """Splits at white space."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError


def write_signatures(folder: Path, shards: Mapping[int, Sequence[str]]) -> None:
    """The first stage, for the texts of each shard."""
    # datatrove 0.10.1 gives texts to xxhash, of which version 4 takes bytes only.
    stage = MinhashDedupSignature(str(folder), language=SpaceTokenizer())  # pyright: ignore[reportArgumentType]
    stage._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())
    for shard, texts in shards.items():
        stage.run((Document(text, str(number)) for number, text in enumerate(texts)), shard)  # pyright: ignore[reportArgumentType]


def write_clusters(signatures: Path, folder: Path) -> None:
    """The second and the third stage."""
    num_buckets = MinhashConfig().num_buckets
    buckets = MinhashDedupBuckets(str(signatures), str(folder / "buckets"))
    clusters = MinhashDedupCluster(
        str(folder / "buckets"), str(folder / "clusters"), save_cluster_id=True
    )
    with contextlib.redirect_stderr(io.StringIO()):  # bars of progress
        for bucket in range(num_buckets):
            buckets.run(world_size=num_buckets, rank=bucket)
        clusters.run()


def read_clusters(folder: Path, sizes: Sequence[int]) -> list[list[int]]:
    """The clusters that were written, as numbers of documents over shards of these sizes."""
    clusters: dict[int, list[int]] = defaultdict(list)
    for shard in range(len(sizes)):
        file = folder / "clusters" / f"{shard:06d}.clusters"
        if file.exists():
            for number, cluster in np.fromfile(file, "<u4").reshape(-1, 2).tolist():
                clusters[cluster].append(sum(sizes[:shard]) + number)
    return list(clusters.values())
