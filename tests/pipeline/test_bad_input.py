"""Error messages for input that cannot be used.

Each case runs through the real command line: the exit code gives the kind of mistake, the message
says what is wrong, where, and what to do; there is never a traceback. With STILLHOUSE_TABLE set to
a file, every case also writes a line of its message there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.model_shapes import write_words
from tests.pipeline.tiny_run import (
    Outcome,
    TinyRun,
    call,
    half_written,
    refused,
    write_recipe,
)
from tokenizers import Tokenizer

import stillhouse
from stillhouse.runs.paths import RunFolder, locked


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(tmp_path: Path) -> TinyRun:
    """A recipe that has not run yet, with its own text.txt."""
    return TinyRun(write_recipe(tmp_path), tmp_path / "run")


# The recipe


@pytest.mark.parametrize(
    ("setting", "messages"),
    [
        ("distillation.temprature=1", ["distillation.temprature is not a key", "'temperature'"]),
        (
            "tokens.sequence_length=long",
            ["tokens.sequence_length: should be a whole number", "got 'long'"],
        ),
        ("teacher.num_heads=3", ["hidden_size 16 is not a multiple of num_heads 3"]),
        (
            "distillation.losses={soft_target: {weight: 0}}",
            ["distillation.losses: every weight is zero or left out"],
        ),
        ("distillation.control=same_time", ["same_time", "Set it to both"]),
        ("student.layer_map=[0, 7]", [r"teacher layers \[7\]", "layers 0 to 2", r"such as \[0\]"]),
        ("student.layer_map=9", ["asks for 9 layers", "the teacher has 3"]),
        ("seed", ["--set takes KEY.KEY=VALUE", "got 'seed'"]),
        (
            "distillation.losses.relation={weight: 1, heads: 3}",
            [r"relation\.heads is 3", r"student \(16\) and of the teacher \(16\)", "Set it to 2"],
        ),
        (
            "distillation.losses.relation={weight: 1, teacher_layer: 3}",
            [r"relation\.teacher_layer is 3", "the teacher has layers 0 to 2", "leave the key out"],
        ),
        (
            "distillation.losses.relation={weight: 1, student_layer: 2}",
            [r"relation\.student_layer is 2", "the student has layers 0 to 1"],
        ),
        (
            "distillation.losses.relation={weight: 1, student_layer: -1}",
            [r"relation\.student_layer: .*greater than or equal to 0, got -1"],
        ),
    ],
)
def test_invalid_settings_are_rejected_with_key_and_value(ready, setting, messages):
    """Exit code 2, with the key, the value and a valid one."""
    refused(ready.call("run", "--set", setting), 2, *messages)


@pytest.mark.parametrize(
    ("parameters", "channels", "message"),
    [
        ("1k", 64, r"1,000 parameters, but the embeddings and one narrow layer have 7,360\. Give"),
        (
            "90M",
            64,
            r"90\.0 M parameters, but all layers of the teacher have 15\.5 k already\. Give",
        ),
        (
            "7500",
            2,
            r"7,500 parameters, but no student of this teacher .* 2% fewer\. Give \d,\d+\.",
        ),
    ],
)
def test_a_budget_that_no_student_meets_is_rejected_with_sizes_that_do(
    tmp_path, parameters, channels, message
):
    recipe = write_recipe(tmp_path)
    settings = (
        f"teacher.intermediate_size={channels}",
        f"student={{budget: {{parameters: {parameters}}}}}",
    )
    outcome = call("check", recipe, *(part for key in settings for part in ("--set", key)))
    refused(outcome, 2, f"tiny.yaml: student.budget allows {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("teacher: [", "broken.yaml: line 1, column 11 is not YAML"),
        ("seed: 1\nseed: 2\n", "line 2, column 1 is not YAML: the key 'seed' appears twice"),
        ("", "a recipe is a mapping of keys to values, got nothing: the file is empty"),
        ("seed: 1\n", "teacher is missing"),
        ("teacher: sample\n", "neither a corpus to distill on nor a task in finetuning"),
    ],
)
def test_malformed_recipe_files_are_rejected_with_position(tmp_path, content, message):
    """The place in the file, and what is wrong there."""
    path = tmp_path / "broken.yaml"
    path.write_text(content, encoding="utf-8")
    refused(call("check", path), 2, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "quikstart"), "There is no recipe 'quikstart'.*Did you mean 'quickstart'"),
        (("run", "quickstart", "--until", "distil"), "there is no such stage; stages are clean"),
        (("distill", "quickstart", "--overwrite", "distil"), "--overwrite names distil; stages"),
    ],
)
def test_unknown_names_suggest_the_nearest(arguments, message):
    """The nearest name, or the list of names."""
    refused(call(*arguments), 2, message)


def test_unknown_commands_are_usage_errors():
    """The parser's own message, and the exit code of a usage error."""
    outcome = call("distil")
    assert outcome.code == 2
    assert "No such command 'distil'" in outcome.err


# Text


def binary(content: bytes) -> bytes:
    return content[:1000] + b"\0" + content[1000:]


def latin(content: bytes) -> bytes:
    return content[:1000] + b"\xe9t\xe9" + content[1000:]


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda _: b"", ["text.txt holds no text: every document is empty or blank"]),
        (latin, ["text.txt is not UTF-8: byte 1000 is 0xe9", "iconv"]),
        (binary, ["text.txt holds a NUL character in line 4", "binary file"]),
        (lambda _: b"one short line", ["text.txt has 14 characters", "too little to hold a part"]),
    ],
    ids=["empty", "not-utf8", "nul", "too-short"],
)
def test_unusable_text_is_rejected_with_file_and_position(tiny, change, messages):
    """Exit code 3; the message names file and position, and no tokens are written."""
    text = tiny.recipe.with_name("text.txt")
    text.write_bytes(change(text.read_bytes()))
    refused(tiny.call("run"), 3, *messages)
    assert not (tiny.folder / "tokens").exists()
    assert not half_written(tiny.folder)


def test_a_missing_source_is_rejected_with_the_folder_it_was_searched_from(tiny):
    """The source as written, and the working folder."""
    outcome = tiny.call("run", "--set", "corpus.source=absent/*.txt")
    refused(outcome, 3, r"No file matches corpus.source 'absent/\*.txt' \(seen from ")


def test_text_smaller_than_one_step_is_rejected(ready):
    """The size of the text, the size of a step, and the keys to change."""
    outcome = ready.call("distill", "--set", "distillation.tokens_per_step=1_000_000")
    message = r"gives \d+ sequences of 32 tokens, fewer than the 31250 of one optimizer step"
    refused(outcome, 3, message, r"such as distillation\.tokens_per_step \(to at most \d+;")


def test_text_too_small_for_the_tokenizer_is_rejected(tiny):
    """The number of entries that the text yields, and the key to lower."""
    outcome = tiny.call("run", "--set", "tokens.tokenizer.vocabulary_size=5000")
    refused(outcome, 3, r"vocabulary_size is 5000, but .* gives only \d+ entries. Lower it to")


def test_text_in_one_huge_line_is_accepted(tiny, initialized):
    """A line of three million characters is one document among others."""
    text = tiny.recipe.with_name("text.txt")
    content = text.read_text(encoding="utf-8")
    huge = " ".join([content.replace("\n", " ")] * 100)[:3_000_000]
    text.write_text(f"{huge}\n{content}", encoding="utf-8")
    tokenizer = initialized.folder / "tokens/tokenizer"
    outcome = tiny.call("prepare", "--set", f"tokens.tokenizer={tokenizer}")
    assert outcome.code == 0, outcome.err
    manifest = json.loads((tiny.folder / "tokens/manifest.json").read_text(encoding="utf-8"))
    splits = manifest["facts"]["splits"].values()
    assert sum(split["documents"] for split in splits) == 121
    assert sum(split["bytes"] for split in splits) == 3_000_000 + len(content) - 120


def read_facts(run: TinyRun) -> dict:
    """The record of reading and splits in the manifest of the corpus."""
    return json.loads((run.folder / "corpus/manifest.json").read_text(encoding="utf-8"))["facts"]


def prepare_with(tiny: TinyRun, initialized: TinyRun, *settings: str) -> Outcome:
    """`prepare` with an existing tokenizer."""
    keys = (f"tokens.tokenizer={initialized.folder / 'tokens/tokenizer'}", *settings)
    return tiny.call("prepare", *(part for key in keys for part in ("--set", key)))


def test_one_big_file_is_held_out_by_blocks(tiny, initialized):
    """It works without further settings; the method is logged and recorded in the manifest."""
    outcome = prepare_with(tiny, initialized, "corpus.documents=per_file")
    assert outcome.code == 0, outcome.err
    note = (
        "too few documents to hold out whole ones: blocks of the document are held out, each of "
        "about 512 characters"
    )
    assert note in outcome.err
    facts = read_facts(tiny)
    assert note in facts["splitting"]["note"]
    size = tiny.recipe.with_name("text.txt").stat().st_size
    assert sum(split["bytes"] for split in facts["splits"].values()) == size
    assert 0 < facts["splits"]["validation"]["bytes"] < size / 2


def test_unreadable_files_of_a_folder_are_counted(tiny, initialized, tmp_path):
    """The log says how files are read, and how many of which suffix are skipped."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    tiny.recipe.with_name("text.txt").rename(folder / "text.txt")
    (folder / "page.html").write_text("<p>the still turns</p>")
    for name in ("a.pdf", "b.pdf", "c.PDF", "d.png", "e.png"):
        (folder / name).write_bytes(b"%PDF-1.7 \xff\0")
    outcome = prepare_with(tiny, initialized, f"corpus.source={folder}")
    assert outcome.code == 0, outcome.err
    said = "reading 1 file as HTML, 1 as text; skipped 5: 3 .pdf, 2 .png"
    assert said in outcome.err
    assert read_facts(tiny)["read"]["skipped"] == {".pdf": 3, ".png": 2}


def test_a_pdf_is_rejected_with_a_way_to_convert_it(tiny, tmp_path):
    """A PDF that is named is rejected; alone in a folder, it is counted."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.pdf").write_bytes(b"%PDF-1.7 \xff\0")
    outcome = tiny.call("run", "--set", f"corpus.source={folder / '0.pdf'}")
    message = (
        r"0\.pdf cannot be read as text: it is a \.pdf file\. Convert it to text, such as with"
    )
    refused(outcome, 3, message, "`pdftotext`")
    outcome = tiny.call("run", "--set", f"corpus.source={folder}")
    message = r"The folder .*scans holds no file with one of the suffixes \.html"
    refused(outcome, 3, message, r"it holds 3 \.pdf\. Name other text files by a glob")


# Teachers


@pytest.fixture
def given(initialized: TinyRun, tmp_path: Path) -> Callable[..., Outcome]:
    """Runs the recipe with a copy of the trained teacher as a given one."""
    teacher = tmp_path / "given"
    shutil.copytree(initialized.folder / "teacher", teacher)
    recipe = write_recipe(tmp_path)
    text = recipe.read_text(encoding="utf-8")
    described = text[text.index("teacher:") : text.index("corpus:")]
    recipe.write_text(text.replace(described, f"teacher: {teacher}\n"), encoding="utf-8")

    def run(*more: str, command: str = "run") -> Outcome:
        folder = () if command == "check" else ("--run-dir", tmp_path / "run")
        settings = [part for key in more for part in ("--set", key)]
        return call(command, recipe, *folder, *settings)

    return run


def test_a_tokenizer_of_another_size_than_the_teacher_is_rejected(given, tmp_path):
    """The two sizes, and the key to set."""
    write_words(tmp_path / "other", 400)
    outcome = given(f"tokens.tokenizer={tmp_path / 'other'}")
    message = "tokenizer has 400 tokens, but the teacher in .*given has a vocabulary of 320"
    refused(outcome, 3, message, "tokenizer: teacher")


def test_training_a_tokenizer_for_a_teacher_that_has_one_is_rejected(given):
    """A student reads its teacher's tokens."""
    outcome = given("tokens.tokenizer={train: byte_bpe, vocabulary_size: 320}")
    refused(outcome, 2, "trains a new vocabulary, but the teacher already has one")


def test_a_tokenizer_with_other_tokens_than_the_teacher_is_rejected(given, initialized, tmp_path):
    """The same number of tokens, but different ones."""
    other = tmp_path / "other"
    shutil.copytree(initialized.folder / "tokens/tokenizer", other)
    path = other / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["!"], vocabulary["#"] = vocabulary["#"], vocabulary["!"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert Tokenizer.from_file(str(path)).get_vocab_size() == 320
    outcome = given(f"tokens.tokenizer={other}")
    refused(outcome, 3, "tokenizer and the teacher's in .*given disagree on 2 tokens, such as")


def test_sequences_longer_than_the_teachers_positions_are_rejected(given):
    """The teacher's positions limit the sequence length; `check` reports it too."""
    settings = ("tokens.sequence_length=64", "tokens.tokenizer=teacher")
    message = r"sequence_length is 64, but the teacher has 32 positions\. Set it to at most 32"
    refused(given(*settings, command="check"), 2, message)
    refused(given(*settings), 2, message)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", Path.unlink, "has no weights; Stillhouse reads model.safetensors"),
        (
            "model.safetensors",
            lambda path: path.rename(path.with_name("pytorch_model.bin")),
            "has only pytorch_model.bin, which can run code when loaded",
        ),
        ("model.safetensors", cut, "The weights in .*given cannot be loaded"),
        ("config.json", Path.unlink, "is not a model folder: it has no config.json"),
        ("config.json", cut, "config.json cannot be read as a model configuration"),
        (
            "config.json",
            lambda path: path.write_text('{"model_type": "t5"}'),
            r"'t5' is not supported \(it has an encoder and a decoder\); supported are gpt2, llama",
        ),
    ],
    ids=["no-weights", "pickle", "cut-weights", "no-config", "cut-config", "unknown-architecture"],
)
def test_an_incomplete_teacher_folder_is_rejected(given, tmp_path, file, damage, message):
    """Exit code 4; what the folder lacks, and what it needs."""
    damage(tmp_path / "given" / file)
    command = "check" if file == "config.json" else "run"
    refused(given("tokens.tokenizer=teacher", command=command), 4, message)


def test_a_missing_teacher_folder_is_rejected(given):
    """A path is not mistaken for a hub name."""
    refused(given("teacher=./absent/teacher/folder"), 4, "there is no such folder .seen from")


def test_a_hub_name_with_offline_is_rejected(tmp_path):
    """Exit code 7; how to give a folder instead."""
    recipe = write_recipe(tmp_path)
    settings = ("teacher=someone/some-teacher", "tokens.tokenizer=teacher")
    overrides = [part for key in settings for part in ("--set", key)]
    message = "'someone/some-teacher' is not on this disk, and --offline forbids the network"
    advice = "give a folder with config, safetensors and tokenizer files"
    for command in ("check", "run"):
        refused(call(command, recipe, "--offline", *overrides), 7, message, advice)


@pytest.mark.e2e
def test_a_hub_name_without_a_network_is_rejected(tmp_path):
    """The same when the network was allowed but is unavailable."""
    source = str(Path(stillhouse.__file__).parents[1])
    settings = ["--set", "teacher=someone/some-teacher", "--set", "tokens.tokenizer=teacher"]
    result = subprocess.run(
        [sys.executable, "-m", "stillhouse", "check", write_recipe(tmp_path), *settings],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": source},
        capture_output=True,
        text=True,
    )
    outcome = Outcome(result.returncode, result.stdout, result.stderr)
    refused(outcome, 7, "'someone/some-teacher'", "give a folder with config, safetensors")


# The run folder


def flip_a_bit(path: Path) -> None:
    content = np.fromfile(path, np.uint8)
    content[len(content) // 2] ^= 1
    content.tofile(path)


@pytest.mark.parametrize(
    ("stage", "file", "damage", "message"),
    [
        ("distill", "tokens/train-00000.bin", flip_a_bit, "damaged: its content does not match"),
        ("distill", "tokens/train-00000.bin", cut, r"is damaged: \d+ bytes, expected \d+"),
        ("distill", "tokens/train-counts.bin", Path.unlink, "is missing, though .*manifest.json"),
        ("distill", "tokens/manifest.json", cut, "manifest.json is damaged"),
        ("distill", "teacher/model.safetensors", flip_a_bit, "does not match its SHA-256"),
        ("distill", "student-init/model.safetensors", flip_a_bit, "does not match its SHA-256"),
        ("evaluate", "tokens/validation-00000.bin", flip_a_bit, "does not match its SHA-256"),
        ("evaluate", "student/model.safetensors", flip_a_bit, "does not match its SHA-256"),
        ("report", "evaluation.json", cut, "evaluation.json is damaged"),
    ],
)
def test_damaged_files_of_a_run_are_rejected(done, stage, file, damage, message):
    """Exit code 5; the file, and how to recreate it. Nothing is trained or measured."""
    damage(done.folder / file)
    if stage == "distill":
        shutil.rmtree(done.folder / "student")
    if stage == "evaluate":
        (done.folder / "evaluation.manifest.json").unlink()
    refused(done.call(stage), 5, re.escape(file.split("/")[-1]), message, "Move .* away")


def test_a_run_in_use_by_another_process_is_rejected(ready):
    """Two commands never write the same folder."""
    with locked(RunFolder.at(ready.folder)):
        refused(ready.call("distill"), 5, "is in use by another stillhouse process. Wait for it")


@contextmanager
def powerless() -> Iterator[None]:
    """As a user without write permission, if the tests run as root."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_read_only_run_folder_is_rejected(tiny, tmp_path):
    """Exit code 5, and the option to give another folder."""
    tiny.folder.mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith(("test_", "popen-", "pytest-")):
            folder.chmod(0o755)
    with powerless():
        outcome = tiny.call("run")
    refused(outcome, 5, "cannot be written .Permission denied.. Give a folder .* with --run-dir")


def test_an_internal_error_writes_its_traceback_to_a_file(tmp_path, monkeypatch):
    """Exit code 1: the user gets one sentence, the file gets the traceback and the command."""

    def fail() -> list[str]:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("stillhouse.recipe_file.recipe_names", fail)
    refused(call("recipes"), 1, "This is a bug in Stillhouse, not yours: ZeroDivisionError")
    (report,) = tmp_path.glob("crash-*.txt")
    content = report.read_text(encoding="utf-8")
    assert content.startswith("stillhouse recipes\n")
    assert "Traceback (most recent call last)" in content
    assert "a mistake of ours" in content
