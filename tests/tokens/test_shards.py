"""Token shards: what is written is what is read, and damage is named."""

from itertools import pairwise

import numpy as np
import pytest

from stillhouse.errors import DataError
from stillhouse.runs.manifest import Inputs, commit_folder
from stillhouse.tokens.shards import COUNTS, ShardWriter, TokenSplit, open_split, token_dtype

DOCUMENTS = [[5, 6, 7], [8], [], [9, 9, 9, 9, 9], [4]]


def write(folder, documents, *, document_prefix=(), vocabulary_size=10, tokens_per_shard=4):
    """A committed tokens folder whose two splits both hold `documents`."""
    facts = {"dtype": token_dtype(vocabulary_size).name, "vocabulary_size": vocabulary_size}
    facts["splits"] = {}
    with commit_folder(folder, Inputs("prepare", {}, {}), facts) as temporary:
        for split in ("train", "validation"):
            size, length = vocabulary_size, tokens_per_shard
            writer = ShardWriter(
                temporary,
                split,
                vocabulary_size=size,
                document_prefix=document_prefix,
                tokens_per_shard=length,
            )
            with writer:
                for document in documents:
                    writer.add(np.array(document, np.int64), starts_document=True)
            facts["splits"][split] = {"shards": writer.shards, "empty": writer.empty_documents}
            (temporary / COUNTS).write_bytes(writer.counts.tobytes())
    return facts


def documents_of(split: TokenSplit) -> list[list[int]]:
    starts = split.document_starts.tolist()
    return [split.read(start, stop).tolist() for start, stop in pairwise(starts)]


def test_shards_give_back_the_documents(tmp_path):
    """Every document with tokens is read back, over several shards; the empty one is counted."""
    facts = write(tmp_path / "tokens", DOCUMENTS)
    split = open_split(tmp_path / "tokens", "train")
    assert documents_of(split) == [document for document in DOCUMENTS if document]
    assert facts["splits"]["train"]["empty"] == 1
    assert (split.num_tokens, split.num_documents) == (10, 4)


def test_a_document_stays_within_one_shard(tmp_path):
    """A shard ends at the first document boundary after it is full."""
    facts = write(tmp_path / "tokens", DOCUMENTS)
    assert facts["splits"]["train"]["shards"] == ["train-00000", "train-00001", "train-00002"]
    assert [len(shard) for shard in open_split(tmp_path / "tokens", "train").shards] == [4, 5, 1]


def test_a_read_spans_shards(tmp_path):
    """Any range of the split reads as if all shards were one array of int64."""
    write(tmp_path / "tokens", DOCUMENTS)
    split = open_split(tmp_path / "tokens", "validation")
    whole = [token for document in DOCUMENTS for token in document]
    for start in range(len(whole) + 1):
        for stop in range(start, len(whole) + 1):
            read = split.read(start, stop)
            assert read.dtype == np.int64
            assert read.tolist() == whole[start:stop]


def test_each_document_begins_with_the_prefix(tmp_path):
    """Causal documents begin with end-of-text; one without tokens leaves no prefix behind."""
    write(tmp_path / "tokens", DOCUMENTS, document_prefix=(0,))
    split = open_split(tmp_path / "tokens", "train")
    assert documents_of(split) == [[0, *document] for document in DOCUMENTS if document]


def test_a_document_may_come_in_parts(tmp_path):
    """Tokens that do not start a document go on with the last, even where it began with none."""
    with ShardWriter(tmp_path, "train", vocabulary_size=10, document_prefix=(0,)) as writer:
        for part, starts in (([], True), ([1, 2], False), ([3], False), ([4], True), ([], False)):
            writer.add(np.array(part, np.int64), starts_document=starts)
    assert np.fromfile(tmp_path / "train-00000.bin", "<u2").tolist() == [0, 1, 2, 3, 0, 4]
    assert np.fromfile(tmp_path / "train-00000.idx", "<u8").tolist() == [0, 4, 6]
    assert (writer.num_documents, writer.num_tokens, writer.empty_documents) == (2, 6, 0)


def test_token_counts_match_the_shards(tmp_path):
    """Every token on disk is counted once, prefixes too."""
    write(tmp_path / "tokens", DOCUMENTS, document_prefix=(0,))
    split = open_split(tmp_path / "tokens", "validation")
    expected = np.bincount(split.read(0, split.num_tokens), minlength=10)
    assert split.counts.tolist() == expected.tolist()


@pytest.mark.parametrize(("size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_the_dtype_is_the_smallest_that_holds_the_vocabulary(tmp_path, size, dtype):
    """The largest id survives in the smallest type that holds it."""
    facts = write(tmp_path / "tokens", [[0, size - 1]], vocabulary_size=size)
    assert facts["dtype"] == dtype
    assert open_split(tmp_path / "tokens", "train").read(0, 2).tolist() == [0, size - 1]


def test_documents_larger_than_the_write_buffer_keep_their_order(tmp_path):
    """More tokens than the writer's buffer come back in order."""
    tokens = np.arange(600_000) % 1000
    write(tmp_path / "tokens", tokens.reshape(-1, 300).tolist(), vocabulary_size=1000,
          tokens_per_shard=250_000)  # fmt: skip
    split = open_split(tmp_path / "tokens", "train")
    assert len(split.shards) == 3
    assert np.array_equal(split.read(0, split.num_tokens), tokens)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0\0")


def disorder(path):
    path.write_bytes(np.array([0, 9, 4], "<u8").tobytes())


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-00001.bin", cut, r"train-00001\.bin is damaged: 9 bytes, expected 10"),
        ("train-00001.bin", lengthen, r"train-00001\.bin is damaged: 12 bytes, expected 10"),
        ("train-00000.bin", lambda path: path.unlink(), r"train-00000\.bin is missing"),
        ("train-00000.idx", cut, r"train-00000\.idx is damaged: 23 bytes, expected 24"),
        ("train-00000.idx", disorder, r"train-00000\.idx is damaged: its document starts"),
        (COUNTS, cut, r"train-counts\.bin is damaged"),
    ],
)
def test_open_split_names_a_damaged_file(tmp_path, name, damage, message):
    """The error names the file and says how to write it again."""
    write(tmp_path / "tokens", DOCUMENTS)
    damage(tmp_path / "tokens" / name)
    with pytest.raises(DataError, match=rf"(?s){message}.*stillhouse prepare") as error:
        open_split(tmp_path / "tokens", "train")
    assert error.value.exit_code == 3


def test_an_id_beyond_the_vocabulary_is_refused_when_read(tmp_path):
    """A flipped bit must not become an index outside the embedding matrix."""
    write(tmp_path / "tokens", DOCUMENTS)
    path = tmp_path / "tokens" / "train-00001.bin"
    path.write_bytes(np.array([9, 9, 9, 500, 9], "<u2").tobytes())
    split = open_split(tmp_path / "tokens", "train")
    assert split.read(0, 7).tolist() == [5, 6, 7, 8, 9, 9, 9]
    with pytest.raises(DataError, match=r"train-00001\.bin.*token 500.*vocabulary has 10"):
        split.read(0, 8)


def test_a_folder_without_tokens_says_what_to_run(tmp_path):
    """A stage that has not run yet is not a damaged one."""
    with pytest.raises(DataError, match=r"no tokens yet.*stillhouse prepare"):
        open_split(tmp_path, "train")


def test_a_split_in_memory_has_no_files():
    """It is read like one on disk; ids beyond its vocabulary are a mistake of ours."""
    split = TokenSplit.in_memory([np.array([1, 2]), np.array([3])], 4)
    assert split.read(1, 3).tolist() == [2, 3]
    assert split.counts.tolist() == [0, 1, 1, 1]
    with pytest.raises(AssertionError):
        TokenSplit.in_memory([np.array([1, 4])], 4)
