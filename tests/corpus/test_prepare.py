"""The corpus stage as a whole: from files of text to shards, the same on every machine."""

import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import gigatoken
import numpy as np
import pytest
from tests.byte_fallback import byte_fallback_tokenizer

from stillhouse.corpus import prepare as prepare_module
from stillhouse.corpus.prepare import TextCounts, prepare, prepare_inputs
from stillhouse.data.chunks import Chunk
from stillhouse.data.documents import is_validation, read_documents
from stillhouse.errors import DataError, NetworkError, RecipeError
from stillhouse.recipe import Recipe
from stillhouse.runs.manifest import facts_of, is_up_to_date, read_manifest, sha256_of, verify
from stillhouse.runs.paths import RunFolder
from stillhouse.tokens.shards import open_split
from stillhouse.tokens.tokenizer import load_tokenizer, special_tokens, text_encoder
from stillhouse.tokens.tokenizer_training import train_tokenizer

SENTENCE = "The stillhouse keeps the spirit of {} and leaves the water of {} behind.\n"


@pytest.fixture
def texts(tmp_path):
    """Forty small files, about a fifth of them held out."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(SENTENCE.format(number, number * 7) * (number + 1))
    return folder


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """A tiny tokenizer folder for each kind of language modeling."""
    names = ("causal", "masked", "byte fallback")
    folders = {name: tmp_path_factory.mktemp(name) for name in names}
    lines = [SENTENCE.format(number, number) for number in range(1000)]
    train_tokenizer("byte_bpe", 300, iter(lines), "causal").save_pretrained(folders["causal"])
    train_tokenizer("wordpiece", 120, iter(lines), "masked").save_pretrained(folders["masked"])
    byte_fallback_tokenizer().save_pretrained(folders["byte fallback"])
    return folders


def recipe_for(
    source: object, tokenizer: object = "teacher", *, language_modeling="causal", **corpus: object
) -> Recipe:
    return Recipe.model_validate(
        {
            "teacher": "any",
            "corpus": {"source": str(source), "validation_fraction": 0.2, **corpus},
            "tokens": {"language_modeling": language_modeling, "tokenizer": tokenizer},
        }
    )


@pytest.mark.parametrize("language_modeling", ["causal", "masked"])
def test_the_shards_hold_the_text(texts, tokenizers, tmp_path, language_modeling):
    """Every document is on its side of the split, token for token, in order."""
    run = RunFolder.at(tmp_path / "run")
    folder = tokenizers[language_modeling]
    recipe = recipe_for(texts, language_modeling=language_modeling)
    prepare(recipe, run, teacher_tokenizer=folder)
    tokenizer = load_tokenizer(folder)
    special = special_tokens(tokenizer, language_modeling)
    prefix = [special.end_of_text] if language_modeling == "causal" else []
    encode = text_encoder(tokenizer)
    for split in ("train", "validation"):
        expected = [
            [*prefix, *encode([piece.text])[0].tolist()]
            for piece in read_documents(recipe.text, offline=True)
            if is_validation(piece.document_id, 0.2) == (split == "validation")
        ]
        tokens = open_split(run.tokens, split)
        assert tokens.read(0, tokens.num_tokens).tolist() == [*chain.from_iterable(expected)]
        assert np.diff(tokens.document_starts.astype(int)).tolist() == [*map(len, expected)]


def test_the_manifests_state_what_was_read(texts, tokenizers, tmp_path):
    """Documents, bytes and words are those of the files; the tokens are those of the shards."""
    run = RunFolder.at(tmp_path / "run")
    prepare(recipe_for(texts), run, teacher_tokenizer=tokenizers["causal"])
    for output in (run.tokens, run.corpus):
        verify(output)
    manifest = read_manifest(run.tokens)
    assert manifest is not None
    facts = manifest.facts
    contents = {path.name: path.read_text() for path in texts.iterdir()}
    for split in ("train", "validation"):
        is_held_out = split == "validation"
        own = [text for name, text in contents.items() if is_validation(name, 0.2) == is_held_out]
        assert facts["splits"][split] == {
            "documents": len(own),
            "bytes": sum(len(text.encode()) for text in own),
            "words": sum(len(text.split()) for text in own),
            "tokens": open_split(run.tokens, split).num_tokens,
            "empty_documents": 0,
            "shards": [f"{split}-00000"],
        }
    assert (facts["dtype"], facts["vocabulary_size"]) == ("uint16", 300)
    assert facts["special_tokens"]["end_of_text"] == 0
    listed = json.loads((run.corpus / "sources.json").read_text())
    assert {file["name"] for file in listed} == set(contents)
    counts = open_split(run.tokens, "train").counts
    assert int(counts.sum()) == facts["splits"]["train"]["tokens"]
    assert int(counts[0]) == facts["splits"]["train"]["documents"]


def test_the_saved_tokenizer_is_the_one_that_was_used(texts, tokenizers, tmp_path):
    """Whoever reads the tokens finds their tokenizer beside them."""
    run = RunFolder.at(tmp_path / "run")
    prepare(recipe_for(texts), run, teacher_tokenizer=tokenizers["causal"])
    tokens = open_split(run.tokens, "validation").read(1, 50).tolist()
    text = load_tokenizer(run.tokens / "tokenizer").decode(tokens)
    assert str(text).startswith("The stillhouse")


def test_a_trained_tokenizer_never_saw_the_validation_text(tmp_path):
    """Changing the held-out documents changes no entry of the vocabulary."""
    made = []
    for word in ("zygote", "quartz"):
        folder = tmp_path / word
        folder.mkdir()
        for number in range(40):
            name = f"{number}.txt"
            text = f"{word} " * 50 if is_validation(name, 0.2) else SENTENCE.format(number, 3) * 20
            (folder / name).write_text(text)
        run = RunFolder.at(tmp_path / f"run-{word}")
        recipe = recipe_for(folder, {"train": "byte_bpe", "vocabulary_size": 300})
        prepare(recipe, run, teacher_tokenizer=None)
        made.append((run.tokens / "tokenizer" / "tokenizer.json").read_text())
    assert made[0] == made[1]


def test_inputs_change_only_with_what_the_tokens_depend_on(texts, tokenizers, tmp_path):
    """A new sequence length needs no new tokens; a touched file or another tokenizer does."""
    recipe = recipe_for(texts)
    run = RunFolder.at(tmp_path / "run")
    prepare(recipe, run, teacher_tokenizer=tokenizers["causal"])

    def up_to_date(recipe=recipe, tokenizer=tokenizers["causal"]):
        return is_up_to_date(run.tokens, prepare_inputs(recipe, run, teacher_tokenizer=tokenizer))

    longer = recipe.tokens.model_copy(update={"sequence_length": 64})
    assert up_to_date()
    assert up_to_date(recipe.model_copy(update={"tokens": longer}))
    assert not up_to_date(recipe_for(texts, validation_fraction=0.3))
    assert not up_to_date(tokenizer=tokenizers["masked"])
    (texts / "0.txt").write_text("Something else.")
    assert not up_to_date()


def test_a_failure_leaves_the_old_tokens_in_place(texts, tokenizers, tmp_path):
    """Broken text found halfway neither replaces nor harms what was committed before."""
    run = RunFolder.at(tmp_path / "run")
    prepare(recipe_for(texts), run, teacher_tokenizer=tokenizers["causal"])
    (texts / "9.txt").write_bytes(b"broken \xff")
    with pytest.raises(DataError, match=r"9\.txt is not UTF-8"):
        prepare(recipe_for(texts), run, teacher_tokenizer=tokenizers["causal"])
    verify(run.tokens)
    assert sorted(path.name for path in run.path.iterdir()) == ["corpus", "tokens"]


@pytest.mark.parametrize("kind", ["causal", "byte fallback"])
def test_long_documents_are_tokenized_as_one(tokenizers, tmp_path, kind):
    """Pieces and stretches leave no trace in the tokens: they equal those of the uncut text."""
    sentence = SENTENCE.replace(".", "")  # so that pieces begin at line ends, too
    text = "".join(sentence.format(number, -number) for number in range(20_000))
    (tmp_path / "a.txt").write_text(text)
    for number in range(20):
        (tmp_path / f"b{number}.txt").write_text(SENTENCE)
    run = RunFolder.at(tmp_path / "run")
    prepare(recipe_for(tmp_path / "*.txt"), run, teacher_tokenizer=tokenizers[kind])
    split = open_split(run.tokens, "validation" if is_validation("a.txt", 0.2) else "train")
    (ids,) = text_encoder(load_tokenizer(tokenizers[kind]))([text])
    assert split.read(1, 1 + len(ids)).tolist() == ids.tolist()


def test_words_are_counted_once_when_a_cut_splits_them():
    """The number of words is that of the whole text."""
    counts = TextCounts()
    for text, starts in (("one tw", True), ("o thr", False), ("ee ", False), ("four", False)):
        counts.add(Chunk("a", text, starts), len(text))
    counts.add(Chunk("b", "five", True), 4)
    assert counts.facts() == {"documents": 2, "bytes": 22, "words": 5}


def test_an_empty_training_split_is_refused(texts, tokenizers, tmp_path):
    """A fraction so large that nothing is left to train on is named."""
    recipe = recipe_for(texts, validation_fraction=0.9999999)
    with pytest.raises(DataError, match=r"The train split is empty.*smaller"):
        prepare(recipe, RunFolder.at(tmp_path), teacher_tokenizer=tokenizers["causal"])


def test_the_teachers_tokenizer_needs_a_teacher(texts, tmp_path):
    """Without a folder to take it from, the error offers the other ways."""
    with pytest.raises(RecipeError, match=r"no teacher folder.*\{train: byte_bpe"):
        prepare(recipe_for(texts), RunFolder.at(tmp_path / "run"), teacher_tokenizer=None)


def test_offline_reaches_the_hub_source(tokenizers, tmp_path):
    """Offline is passed on to where the network would be used."""
    with pytest.raises(NetworkError):
        prepare(
            recipe_for("hf://a/b"),
            RunFolder.at(tmp_path),
            teacher_tokenizer=tokenizers["causal"],
            offline=True,
        )


def test_progress_ends_with_the_totals(texts, tokenizers, tmp_path):
    """The last line says how much there is."""
    lines: list[str] = []
    run = RunFolder.at(tmp_path / "run")
    prepare(recipe_for(texts), run, teacher_tokenizer=tokenizers["causal"], progress=lines.append)
    assert lines[-1].startswith("40 documents, 60.5 kB of text, ")


def shards_of(run: RunFolder) -> dict[str, str]:
    """The SHA-256 of each shard, index and count."""
    files = [path for path in run.tokens.iterdir() if path.suffix in (".bin", ".idx")]
    assert len(files) == 5
    return {path.name: sha256_of(path) for path in files}


def engine_of(run: RunFolder) -> str:
    manifest = read_manifest(run.tokens)
    assert manifest is not None
    return manifest.facts["engine"]


RIGHT = gigatoken.Tokenizer


class Faulty:
    """gigatoken, but for a letter that it loses from one word."""

    def __init__(self, real: Any) -> None:
        self._real = real

    @classmethod
    def from_json(cls, data: str) -> "Faulty":
        return cls(RIGHT.from_json(data))

    def encode_batch(self, texts: list[str]) -> Any:
        return self._real.encode_batch([text.replace("barrels", "barrel") for text in texts])


def test_the_shards_do_not_depend_on_the_encoder(texts, tokenizers, tmp_path, monkeypatch):
    """With gigatoken or without, the bytes are the same, and no reason to run again."""
    (texts / "odd.txt").write_text("<|endoftext|> 日本語 \u2003 é e\u0301 🙂\r\n\t\t x" * 500)
    runs = {name: RunFolder.at(tmp_path / name) for name in ("gigatoken", "tokenizers")}
    prepare(recipe_for(texts), runs["gigatoken"], teacher_tokenizer=tokenizers["causal"])
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    prepare(recipe_for(texts), runs["tokenizers"], teacher_tokenizer=tokenizers["causal"])
    assert {name: engine_of(run).split()[0] for name, run in runs.items()} == dict(
        zip(runs, runs, strict=True)
    )
    assert shards_of(runs["gigatoken"]) == shards_of(runs["tokenizers"])
    inputs = prepare_inputs(
        recipe_for(texts), RunFolder.at(Path()), teacher_tokenizer=tokenizers["causal"]
    )
    assert is_up_to_date(runs["gigatoken"].tokens, inputs)


def test_a_mismatching_encoder_is_replaced_and_logged(texts, tokenizers, tmp_path, monkeypatch):
    """A mismatch far into the text restarts the stage with tokenizers; one log line says why."""
    (texts / "z.txt").write_text("Two barrels. " * 3000)
    right, run = RunFolder.at(tmp_path / "right"), RunFolder.at(tmp_path / "run")
    prepare(recipe_for(texts), right, teacher_tokenizer=tokenizers["causal"])
    monkeypatch.setattr(gigatoken, "Tokenizer", Faulty)
    lines: list[str] = []
    prepare(recipe_for(texts), run, teacher_tokenizer=tokenizers["causal"], progress=lines.append)
    (reason,) = [line for line in lines if line.startswith("tokenizing with tokenizers")]
    assert re.search(r": gigatoken \S+ gives \[.*Two barrels.*, tokenizers \[", reason)
    assert engine_of(run).startswith("tokenizers")
    assert shards_of(run) == shards_of(right)
    assert sorted(path.name for path in run.path.iterdir()) == ["corpus", "tokens"]


@pytest.mark.parametrize(
    ("language_modeling", "line"),
    [
        ("causal", r"tokenizing with gigatoken \S+, checked against tokenizers"),
        ("masked", r"tokenizing with tokenizers \S+: gigatoken is for byte-level BPE"),
    ],
)
def test_the_encoder_is_logged(texts, tokenizers, tmp_path, language_modeling, line):
    """The first log line names the encoder."""
    lines: list[str] = []
    recipe = recipe_for(texts, language_modeling=language_modeling)
    prepare(
        recipe,
        RunFolder.at(tmp_path / "run"),
        teacher_tokenizer=tokenizers[language_modeling],
        progress=lines.append,
    )
    assert re.fullmatch(line, lines[0])


PREPARE = """
import os, re, sys
from pathlib import Path
from stillhouse.corpus.prepare import prepare
from stillhouse.recipe import Recipe
from stillhouse.runs.paths import RunFolder
source, tokenizer, run = sys.argv[1:]
corpus = {"source": source, "validation_fraction": 0.2}
recipe = Recipe.model_validate({"teacher": "any", "corpus": corpus})
prepare(recipe, RunFolder.at(Path(run)), teacher_tokenizer=Path(tokenizer))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
os.fork() and os.wait()
"""


def prepare_in_a_process(source: Path, tokenizer: Path, run: Path, **environment: str) -> int:
    """Run the stage in a fresh process; its largest resident memory in kilobytes."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(source), str(tokenizer), str(run)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""  # no warning, even when the process forks afterwards
    return int(done.stdout.split()[0])


@pytest.mark.e2e
def test_the_shards_do_not_depend_on_the_number_of_threads(texts, tokenizers, tmp_path):
    """One thread and two write the same bytes."""
    hashes = []
    for threads in ("1", "2"):
        run = tmp_path / f"run-{threads}"
        prepare_in_a_process(texts, tokenizers["causal"], run, RAYON_NUM_THREADS=threads)
        hashes.append(shards_of(RunFolder.at(run)))
    assert hashes[0] == hashes[1]


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["word and more ", "日本語", "x"])
def test_a_huge_line_is_prepared_in_bounded_memory(tokenizers, tmp_path, unit):
    """200 MB in one line, with spaces or without, take less than 1 GB."""
    source = tmp_path / "texts"
    source.mkdir()
    with (source / "0.txt").open("w", encoding="utf-8") as file:
        for _ in range(200):
            file.write(unit * (10**6 // len(unit.encode())))
    for number in range(1, 30):
        (source / f"{number}.txt").write_text(SENTENCE)
    peak = prepare_in_a_process(source, tokenizers["causal"], tmp_path / "run")
    assert peak < 1_000_000


@pytest.mark.e2e
def test_a_long_line_is_prepared_in_bounded_memory(texts, tokenizers, tmp_path):
    """10 MB in one line take little more than the libraries themselves."""
    (texts / "long.txt").write_text("word and more " * 700_000)
    peak = prepare_in_a_process(texts, tokenizers["causal"], tmp_path / "run")
    assert peak < 700_000


def test_a_vocabulary_is_compared_on_the_text_it_was_chosen_on(
    texts, tokenizers, tmp_path, monkeypatch
):
    """With all tokens nothing differs, whatever text comes after it."""
    monkeypatch.setattr(prepare_module, "TRAINING_BYTES", 500)
    found = []
    for size in (300, 260):
        recipe = recipe_for(texts)
        recipe = recipe.model_copy(
            update={"student": recipe.student.model_copy(update={"vocabulary": size})}
        )
        run = RunFolder.at(tmp_path / str(size))
        prepare(recipe, run, teacher_tokenizer=tokenizers["causal"])
        found.append(facts_of(run.tokens)["vocabulary"])
    same, fewer = (each["tokens_per_byte"] for each in found)
    assert same["trimmed"] == same["whole"] == fewer["whole"] < fewer["trimmed"]
    assert [(each["tokens"], each["of"]) for each in found] == [(300, 300), (260, 300)]
