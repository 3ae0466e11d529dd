"""Scores by lm-evaluation-harness: on files of this disk, equal to our own where both exist."""

import json
import sys

import pytest

from stillhouse.__main__ import _run

PASSAGES = [
    "The distiller turned the still and waited by the old house until the wind came from the sea",
    "def read_lines(path): with open(path) as file: return file",
    "He said that nobody knew where the road went, and then he left the house",
    "import os, sys, json, and then nothing but json",
]
TASK = """
task: last_word_here
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' ' + text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


@pytest.fixture
def score(capfd, monkeypatch):
    """score(...): the exit code, stdout and stderr of `stillhouse score sample ...`."""

    def run(*arguments, model="sample"):
        command = ["stillhouse", "score", model, *map(str, arguments), "--offline"]
        monkeypatch.setattr(sys, "argv", command)
        code = _run()
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with one task over the passages, and their file."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data, folder = tmp_path / "passages.jsonl", tmp_path / "tasks"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in PASSAGES))
    folder.mkdir()
    (folder / "last_word.yaml").write_text(TASK.replace("DATA", str(data)))
    return folder, data


@pytest.mark.filterwarnings("default")  # of libraries that the harness loads
@pytest.mark.e2e
def test_harness_scores_equal_ours(score, tasks):
    """Last words: whether they are the most likely, and their perplexity."""
    folder, data = tasks
    harness = ("--lm-eval", "last_word_here", "--lm-eval-folder", folder)
    code, out, err = score(*harness, "--json")
    assert code == 0, err
    found = json.loads(out)
    theirs = found["results"]["last_word_here"]
    code, out, _ = score("--task", "lambada", "--data", data, "--json")
    ours = json.loads(out)["metrics"]
    assert code == 0
    assert theirs["acc,none"] == ours["last_word"]["value"]
    assert theirs["perplexity,none"] == pytest.approx(ours["perplexity"]["value"], rel=1e-4)
    assert found["num_examples"] == {"last_word_here": len(PASSAGES)}
    code, out, _ = score(*harness)
    assert code == 0
    assert f"{theirs['acc,none']:.4f}" in out


@pytest.mark.filterwarnings("default")
def test_harness_errors_are_explained(score, tasks):
    """One message and the exit code of its kind; no task of its own is known beside a folder's."""
    folder, data = tasks
    code, _, err = score("--lm-eval", "hellaswag", "--lm-eval-folder", folder)
    assert code == 2
    assert "no task 'hellaswag'. It has last_word_here" in err
    code, _, err = score("--lm-eval", "last_word_here", "--lm-eval-folder", folder / "none")
    assert code == 3
    assert "There is no folder of tasks" in err
    code, _, err = score("--lm-eval", "last_word_here", "--lm-eval-folder", folder, model="minilm")
    assert "causal language model" in err
    data.unlink()
    code, _, err = score("--lm-eval", "last_word_here", "--lm-eval-folder", folder)
    assert code == 3
    assert "The harness could not run last_word_here" in err


def test_one_kind_of_score_is_asked_for_at_a_time(score, tmp_path):
    """Both, or half of one, is refused."""
    alone = (["--task", "lambada"], ["--precision", "bf16"])
    for arguments in ([], *alone, *(["--lm-eval", "x", *own] for own in alone)):
        code, _, err = score(*arguments)
        assert code == 2
        assert "or --lm-eval alone" in err


def test_a_missing_harness_is_explained(score, monkeypatch):
    """Without the extra the message says how to install it."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = score("--lm-eval", "x")
    assert code == 2
    assert "pip install 'stillhouse[lm-eval]'" in err
