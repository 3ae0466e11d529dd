"""The command line: help for every command, results on stdout, one exit code for each mistake."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tests.model_shapes import write_shape
from transformers import GPT2Config, GPT2LMHeadModel

import stillhouse
from stillhouse.__main__ import _run
from stillhouse.models.load import save_model
from stillhouse.tokens.tokenizer_training import train_tokenizer

# For each command, what its help must say that it reads and writes.
COMMANDS = {
    "quickstart": ["Needs no download", "Writes student, control, table and report"],
    "run": ["from text to report", "Writes the run folder: tokens, student, control"],
    "check": ["Reads configurations, task files", "writes nothing"],
    "clean": ["Clean the recipe's text", "Writes clean/ and its report"],
    "prepare": ["Read the recipe's text", "write corpus/ and tokens/"],
    "teacher": ["tokens/ to teacher/"],
    "race": ["under a budget", "writes candidates/ and race.json"],
    "init": ["teacher to student-init/"],
    "distill": ["Reads tokens/ and student-init/", "writes student/ and control/"],
    "finetune": ["alone or under a teacher", "writes finetuned/TASK/MODEL/ and scores.json"],
    "evaluate": ["all models of a run", "into evaluation.json"],
    "report": ["Write report.html", "Reads evaluation.json and metrics.jsonl"],
    "links": ["Reads dumps of submissions", "each once", "Prints how many for each reason"],
    "importance": ["score of each layer", "beside evenly spread ones"],
    "compare": ["size, speed, memory and perplexity", "same text"],
    "score": ["Reads a table, a file in SQuAD's format", "each metric with its 95 % interval"],
    "verify": ["losses on its own teacher and text", "temporary folder"],
    "predict": ["predictions for the examples of a file", "format of transformers' pipelines"],
    "generate": ["Prints each text"],
    "serve": ["over HTTP", "answered by the first one that does its task", "finished"],
    "write": ["a page to write with them", "stay in the browser"],
    "export": ["Reads a model folder, writes DIR", "is not kept"],
    "inspect": ["of all neurons to the folder", "resumes where it was stopped"],
    "inspect-text": ["the predictions of every layer", "attention weights"],
    "inspect-student": ["held-out R2 of a linear map", "a student with random weights"],
    "detect": ["Reads text files", "probability of machine text", "cannot tell"],
    "fit-detector": ["Reads human and machine texts", "writes a file for `detect --detector`"],
    "features": ["last hidden states to a file"],
    "recipes": ["List the packaged recipes"],
    "watch": ["until it ends", "Reads the run folder only", "on this machine only"],
    "compare-runs": ["what their recipes do differently", "paired 95 % interval"],
    "push": ["to the Hugging Face hub", "without the network", "private unless --public"],
    "energy": ["What a run took", "measured by counters", "of generation"],
    "doctor": ["this machine", "intact"],
}
TEXT = "The still turns what is thin into what is strong, drop by drop, and then once more. "


def call(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["stillhouse", *map(str, arguments)])
    code = _run()
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    tokenizer = train_tokenizer("byte_bpe", 300, iter([TEXT * 3]), "causal")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_positions=48, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    save_model(GPT2LMHeadModel(config), tokenizer, folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_is_read_and_written(capsys, monkeypatch, command):
    """Someone who knows only the command's name learns the rest."""
    code, out, _ = call(capsys, monkeypatch, command, "--help")
    page = " ".join(out.split())
    assert code == 0
    for part in COMMANDS[command]:
        assert part in page


def test_every_command_is_in_the_table_above(capsys, monkeypatch):
    """A new command needs a line there."""
    code, out, _ = call(capsys, monkeypatch, "--help")
    listed = out.partition("Commands:")[2].splitlines()
    assert code == 0
    assert {line.split()[0] for line in listed if re.match(r"  \w", line)} == set(COMMANDS)


def test_help_does_not_wait_for_torch():
    """A fresh interpreter shows the help without importing the heavy libraries."""
    program = (
        "import sys; sys.argv = ['stillhouse', '--help']\n"
        "from stillhouse.__main__ import _run\n"
        "code = _run()\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else code)"
    )
    source = str(Path(stillhouse.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": source}
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "quickstart" in result.stdout


@pytest.mark.parametrize("command", ["check", "verify", "run"])
@pytest.mark.parametrize("text", [None, "teacher: [", ""], ids=["missing", "broken", "empty"])
def test_a_recipe_that_cannot_be_read_is_answered_without_torch(command, text, tmp_path):
    """A name that is no file, broken YAML and an empty file, in a fresh interpreter."""
    recipe = tmp_path / "recipe.yaml"
    if text is not None:
        recipe.write_text(text)
    program = (
        "import sys; sys.argv = ['stillhouse', *sys.argv[1:]]\n"
        "from stillhouse.__main__ import _run\n"
        "code = _run()\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else code)"
    )
    source = str(Path(stillhouse.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", program, command, str(recipe)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": source},
    )
    assert result.returncode > 1
    assert result.stderr.startswith("error: ")
    assert "recipe" in result.stderr


def test_the_version_is_printed(capsys, monkeypatch):
    """On stdout, alone."""
    assert call(capsys, monkeypatch, "--version") == (0, f"{stillhouse.__version__}\n", "")


def test_recipes_are_listed_with_what_they_are(capsys, monkeypatch):
    """One line each: the name, and the first line of its comment."""
    code, out, _ = call(capsys, monkeypatch, "recipes")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert lines["distilgpt2"].startswith("DistilGPT2")
    assert {"quickstart", "distilbert-base-uncased", "distilroberta-base"} <= set(lines)


@pytest.mark.e2e
def test_a_recipe_is_printed_to_copy_and_edit(capsys, monkeypatch, tmp_path):
    """What is printed is a recipe that `check` takes."""
    code, out, _ = call(capsys, monkeypatch, "recipes", "distilgpt2")
    assert code == 0
    assert yaml.safe_load(out)["teacher"] == "openai-community/gpt2"
    write_shape(tmp_path / "teacher", GPT2Config())
    copy = tmp_path / "mine.yaml"
    copy.write_text(out, encoding="utf-8")
    override = f"teacher={tmp_path / 'teacher'}"
    assert call(capsys, monkeypatch, "check", copy, "--set", override)[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("distil",),
        ("run",),
        ("generate", "folder"),
        ("run", "quickstart", "--tempreature", "1"),
        ("generate", "folder", "--prompt", "a", "--seed", "none"),
    ],
)
def test_a_usage_mistake_is_exit_code_2(capsys, monkeypatch, arguments):
    """An unknown command or option, a missing one, a wrong type: the parser's own message."""
    code, out, err = call(capsys, monkeypatch, *arguments)
    assert code == 2
    assert out == ""
    assert "Error" in err
    assert "bug" not in err


def test_an_unknown_option_suggests_the_nearest(capsys, monkeypatch):
    _, _, err = call(capsys, monkeypatch, "check", "quickstart", "--sett", "seed=1")
    assert "No such option: --sett. Did you mean '--set'?" in err
    _, _, err = call(capsys, monkeypatch, "--versoin")
    assert "No such option: --versoin. Did you mean '--version'?" in err


def test_generate_prints_texts_that_begin_with_the_prompt(capsys, monkeypatch, model):
    """The same command with the same seed prints the same."""
    arguments = ("generate", model, "--prompt", "The still", "--seed", 3, "--max-new-tokens", 8)
    code, out, err = call(capsys, monkeypatch, *arguments)
    assert (code, err) == (0, "")
    assert out.startswith("The still")
    assert call(capsys, monkeypatch, *arguments)[1] == out


def test_generate_as_json_is_a_list_of_texts(capsys, monkeypatch, model):
    """As the field's pipelines give it."""
    arguments = ("--prompt", "The still", "--num-return-sequences", 2, "--max-new-tokens", 8)
    code, out, _ = call(capsys, monkeypatch, "generate", model, *arguments, "--json")
    texts = json.loads(out)
    assert code == 0
    assert len(texts) == 2
    assert all(text["generated_text"].startswith("The still") for text in texts)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--max-new-tokens", 1000), 3, "the model takes 48 in total"),
        (("--temperature", 0), 2, "temperature is 0.0; it must be above 0"),
        (("--greedy", "--num-return-sequences", 2), 2, "greedy gives one text only"),
    ],
)
def test_generate_refuses_what_it_cannot_do(capsys, monkeypatch, model, arguments, code, message):
    """One sentence on stderr, nothing on stdout."""
    found = call(capsys, monkeypatch, "generate", model, "--prompt", "The still", *arguments)
    assert found[:2] == (code, "")
    assert found[2].startswith("error: ")
    assert message in found[2]


def test_features_are_written_once(capsys, monkeypatch, model, tmp_path):
    """The file holds one row a token; a second time it is not overwritten."""
    path = tmp_path / "states.npy"
    arguments = ("features", model, "--text", "drop by drop", "--output", path)
    code, out, _ = call(capsys, monkeypatch, *arguments)
    states = np.load(path)
    assert code == 0
    assert out == f"{path}: {states.shape[0]} tokens x 16\n"
    code, _, err = call(capsys, monkeypatch, *arguments)
    assert code == 2
    assert "nothing is overwritten" in err


def test_a_folder_that_is_no_model_is_exit_code_4(capsys, monkeypatch, tmp_path):
    """The folder is named, and what it lacks."""
    code, _, err = call(capsys, monkeypatch, "generate", tmp_path, "--prompt", "a")
    assert code == 4
    assert f"{tmp_path} is not a model folder: it has no config.json" in err


def test_a_student_drafts_and_the_text_stays_the_model_s(capsys, monkeypatch, model):
    """The same text as without it; how much of the draft was kept goes to stderr."""
    asked = ("generate", model, "--prompt", "The still", "--greedy", "--max-new-tokens", 12)
    _, alone, _ = call(capsys, monkeypatch, *asked)
    code, drafted, said = call(capsys, monkeypatch, *asked, "--draft", model)
    assert code == 0
    assert drafted == alone
    assert "drafted tokens were accepted" in said


def test_llama_cpp_and_a_draft_are_refused_before_a_model_is_loaded(capsys, monkeypatch):
    """There is no such model."""
    asked = ("generate", "none.gguf", "--prompt", "a", "--engine", "llama.cpp", "--draft", "none")
    code, _, error = call(capsys, monkeypatch, *asked)
    assert code == 2
    assert "llama.cpp gives no logits, which drafts need" in error


def test_beams_and_stops_reach_the_model(capsys, monkeypatch, model):
    """Beams are transformers' own; a stop ends the text before it."""
    asked = ("generate", model, "--prompt", "The still", "--greedy", "--max-new-tokens", 12)
    code, searched, _ = call(capsys, monkeypatch, *asked, "--num-beams", 3)
    assert code == 0
    loaded = stillhouse.load(model)
    ids = torch.tensor([loaded.prompt_ids("The still")])
    output = loaded.model.generate(  # pyright: ignore[reportCallIssue]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, num_beams=3, pad_token_id=0
    )
    assert searched == loaded.decode(output[0].tolist()) + "\n"
    _, plain, _ = call(capsys, monkeypatch, *asked)
    stop = plain[len("The still") + 4 :][:3]
    _, stopped, _ = call(capsys, monkeypatch, *asked, "--stop", stop)
    assert stopped == plain[: plain.index(stop, len("The still"))] + "\n"
    code, _, error = call(capsys, monkeypatch, *asked, "--num-beams", 2, "--draft", model)
    assert code == 2
    assert "one text at a time" in error


@pytest.mark.parametrize("arguments", [("-h",), ("run", "-h")])
def test_the_short_option_for_help_works(capsys, monkeypatch, arguments):
    """As everywhere."""
    code, out, _ = call(capsys, monkeypatch, *arguments)
    assert code == 0
    assert "Show this message and exit." in out


@pytest.mark.parametrize(
    ("device", "message"),
    [("tpu", "it is auto, cpu or cuda"), ("cuda", "PyTorch finds no CUDA device here")],
)
def test_a_device_that_is_not_here_is_refused(capsys, monkeypatch, tmp_path, device, message):
    """With exit code 2, before anything is written."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for command in (
        ("check", "quickstart"),
        ("run", "quickstart"),
        ("generate", "sample", "--prompt", "The sea"),
        ("features", "sample", "--text", "The sea", "--output", "states.npy"),
    ):
        monkeypatch.setenv("STILLHOUSE_DEVICE", "auto")
        monkeypatch.chdir(tmp_path)
        code, out, err = call(capsys, monkeypatch, *command, "--device", device)
        assert (code, out) == (2, "")
        assert message in err
    assert not list(tmp_path.iterdir())
