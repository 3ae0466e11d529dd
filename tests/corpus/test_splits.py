"""Held-out text: of many documents as ever, of few ones by blocks, known before tokenizing."""

import json
import random
from itertools import groupby

import pyarrow
import pytest
from pyarrow import parquet

from stillhouse.corpus.splits import Splitting, blocks_of, plan_splits
from stillhouse.data import chunks
from stillhouse.data.chunks import Chunk, chunk_document
from stillhouse.data.documents import is_validation, read_documents
from stillhouse.data.settings import CorpusRecipe
from stillhouse.errors import DataError


def paragraphs(number: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return "\n\n".join(
        "\n".join(f"Line {line} says {draw.random()}." for line in range(draw.randint(1, 9)))
        for _ in range(number)
    )


def corpus_of(source: object, **settings: object) -> CorpusRecipe:
    return CorpusRecipe.model_validate({"source": str(source), **settings})


def split(corpus: CorpusRecipe) -> tuple[Splitting, dict[str, list[str]]]:
    """How a corpus is split, and the texts of each side."""
    splitting = plan_splits(corpus, offline=True)
    sides: dict[str, list[str]] = {"train": [], "validation": []}
    found = splitting.cut(read_documents(corpus, offline=True))
    for piece in found:
        side = sides["validation" if splitting.is_validation(piece) else "train"]
        if piece.starts_document:
            side.append("")
        side[-1] += piece.text
    return splitting, sides


def test_many_documents_are_split_by_their_ids(tmp_path):
    """Pieces come through untouched, so that the shards stay what they were."""
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(paragraphs(3, number))
    corpus = corpus_of(tmp_path, validation_fraction=0.2)
    splitting, sides = split(corpus)
    assert splitting == Splitting(0.2)
    names = sorted(path.name for path in tmp_path.iterdir())
    texts = {name: (tmp_path / name).read_text() for name in names}
    held = [name for name in names if is_validation(name, 0.2)]
    assert sides["validation"] == [texts[name] for name in held]
    assert sides["train"] == [texts[name] for name in names if name not in held]


@pytest.mark.parametrize("fraction", [0.005, 0.1, 0.3])
def test_one_big_file_is_held_out_by_blocks(tmp_path, fraction):
    """About the share that is asked for, in whole paragraphs; nothing is lost or on both sides."""
    text = paragraphs(4000)
    (tmp_path / "book.txt").write_text(text)
    splitting, sides = split(corpus_of(tmp_path / "book.txt", validation_fraction=fraction))
    assert splitting.block_characters == len(text) // 1000
    assert "blocks of the document are held out" in splitting.note
    held = sum(map(len, sides["validation"]))
    assert 0.3 * fraction < held / len(text) < 3 * fraction
    assert held + sum(map(len, sides["train"])) == len(text)
    for block in [*sides["validation"], *sides["train"]]:
        place = text.index(block)
        assert place == 0 or text[:place].endswith("\n\n")


def test_training_text_is_one_document_up_to_a_held_out_block(tmp_path):
    """Only where text is taken out does a document end."""
    text = paragraphs(4000)
    (tmp_path / "book.txt").write_text(text)
    _, sides = split(corpus_of(tmp_path / "book.txt", validation_fraction=0.01))
    assert 1 < len(sides["validation"]) < 20
    assert abs(len(sides["train"]) - len(sides["validation"])) <= 1


def test_held_out_blocks_stay_held_out_at_a_larger_fraction(tmp_path):
    """As of whole documents."""
    (tmp_path / "book.txt").write_text(paragraphs(4000))
    small, large = (
        "".join(split(corpus_of(tmp_path / "book.txt", validation_fraction=each))[1]["validation"])
        for each in (0.01, 0.1)
    )
    lines = set(large.splitlines())
    assert set(small.splitlines()) <= lines


def jsonl(folder, texts):
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def table(folder, texts):
    path = folder / "texts.parquet"
    parquet.write_table(pyarrow.table({"text": texts}), path)
    return path


def files(folder, texts):
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("write", "texts"),
    [
        (files, [paragraphs(500), paragraphs(500, 1)]),
        (files, [paragraphs(50, seed) for seed in range(3)]),
        (jsonl, [paragraphs(300)]),
        (jsonl, [paragraphs(300).replace("\n", " ")]),
        (table, ["one", "two", "three", "four", "five"]),
        (table, [paragraphs(100, seed) for seed in range(5)]),
        (files, ["a short line", "another"]),
    ],
    ids=["two files", "three files", "a record", "a line", "short rows", "rows", "two lines"],
)
@pytest.mark.parametrize("fraction", [0.0001, 0.1, 0.6])
def test_few_documents_give_text_to_both_splits(tmp_path, write, texts, fraction):
    """Whichever way the hash falls."""
    _, sides = split(corpus_of(write(tmp_path, texts), validation_fraction=fraction))
    assert all("".join(side).strip() for side in sides.values())
    found = "".join([*sides["train"], *sides["validation"]])
    assert sorted(found) == sorted("".join(texts))


def test_a_small_document_is_held_out_whole(tmp_path):
    """Of many documents of which none falls into the split the next in line does, and that is
    said."""
    texts = [paragraphs(20, seed) for seed in range(60)]
    splitting, sides = split(corpus_of(files(tmp_path, texts), validation_fraction=0.00001))
    assert splitting.block_characters is None
    assert "none of the 60 documents falls into the validation split" in splitting.note
    assert len(sides["validation"]) == 1
    assert sides["validation"][0] in texts


@pytest.mark.parametrize(
    ("text", "fraction", "message"),
    [
        ("one line", 0.1, r"book\.txt has 8 characters .*too little to hold a part of it out"),
        (paragraphs(100), 0.9999999, r"The train split is empty.*smaller"),
    ],
)
def test_text_that_cannot_be_split_is_refused(tmp_path, text, fraction, message):
    """Before anything is tokenized."""
    (tmp_path / "book.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        plan_splits(corpus_of(tmp_path / "book.txt", validation_fraction=fraction), offline=True)


def test_planning_stops_once_both_splits_have_a_document(tmp_path):
    """A large corpus is not read twice: the documents after these are not read."""
    lines = [json.dumps({"text": f"text {number}"}) for number in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text("broken")
    assert plan_splits(corpus_of(tmp_path, validation_fraction=0.2), offline=True) == Splitting(0.2)


@pytest.mark.parametrize(
    "text", [paragraphs(300), paragraphs(300).replace("\n\n", "\n"), "word " * 9000, "x" * 20_000]
)
def test_blocks_do_not_depend_on_read_sizes(monkeypatch, text):
    """And are of one to two sizes, but for the last."""
    monkeypatch.setattr(chunks, "MAX_CHUNK_CHARACTERS", 3000)
    whole = list(blocks_of([Chunk("a", text, True)], 700))
    assert list(blocks_of(chunk_document("a", [text]), 700)) == whole
    assert "".join(block.text for block in whole) == text
    assert all(700 <= len(block.text) <= 1400 for block in whole[:-1])
    assert [name for name, _ in groupby(block.document_id for block in whole)] == [
        f"a#{number}" for number in range(len(whole))
    ]
