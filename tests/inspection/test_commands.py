"""The commands, on tiny models."""

import json
import re
import sys

import pytest
from tests.model_shapes import write_words

from stillhouse.__main__ import _run


@pytest.fixture
def call(capsys, monkeypatch):
    """call(*arguments): exit code, stdout and stderr of a command."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillhouse", *map(str, arguments)])
        return (_run(), *capsys.readouterr())

    return run


@pytest.mark.e2e  # it loads the model three times
def test_inspect_prints_layers_and_then_a_neuron(call, saved, words_file, tmp_path):
    """The pass runs once; another call reads its folder, without the text."""
    model, out = saved("model", "llama"), tmp_path / "out"
    code, page, err = call("inspect", model, "--output", out, "--text", words_file, "--tokens", 400)
    assert code == 0, err
    assert "2 layers of 64 neurons on 383 tokens" in page
    words_file.unlink()
    code, page, err = call("inspect", model, "--output", out, "--neuron", "1.3")
    assert code == 0, err
    assert "neuron 1.3 on 383 tokens" in page
    assert "by ablation, in nats" in page
    code, page, _ = call("inspect", model, "--output", out, "--neuron", "1.3", "--json")
    assert json.loads(page)["neuron"] == "1.3"


def test_a_short_text_is_said_and_a_missing_one_comes_before_the_model(
    call, saved, words_file, tmp_path
):
    model = saved("model", "llama")
    line = ("inspect", model, "--output", tmp_path / "out", "--tokens", 100_000)
    code, _, err = call(*line, "--text", words_file)
    assert code == 0
    assert re.search(rf"{re.escape(str(words_file))}: [\d,]+ tokens, of 100,000 asked for", err)
    missing = ("--text", tmp_path / "none.txt")
    for command in (("inspect", "nowhere"), ("inspect-student", "nowhere", "nowhere")):
        code, _, err = call(*command, *missing)
        assert code == 3
        assert "No file matches --text" in err
    assert call("importance", "nowhere", *missing)[0] == 3


def test_inspect_text_prints_both_models(call, saved):
    one, other = saved("one", "gpt2"), saved("other", "gpt2", num_layers=3, seed=1)
    code, page, err = call("inspect-text", one, "--beside", other, "--prompt", "w7 w8 w9")
    assert code == 0, err
    assert f"{one}: logit lens of 4 tokens" in page.replace("\n", "")
    code, page, _ = call("inspect-text", one, "--prompt", "w7 w8 w9", "--json")
    found = json.loads(page)["model"]
    assert found["tokens"][1:] == ["w7", "w8", "w9"]
    assert len(found["attention"][1][1][3]) == 4


def test_inspect_student_has_a_row_for_each_teacher_layer(call, saved, words_file):
    teacher, student = saved("teacher", "llama", num_layers=3), saved("student", "llama", seed=2)
    given = ("inspect-student", student, teacher, "--control", student, "--text", words_file)
    code, page, err = call(*given, "--tokens", 300)
    assert code == 0, err
    assert "R2 control" in page
    code, page, _ = call(*given, "--tokens", 300, "--json")
    found = json.loads(page)
    assert [row["layer"] for row in found["layers"]] == [0, 1, 2]
    assert found["layers"][0]["student"] == found["layers"][0]["control"]
    assert {*found["correlations"]} == {"student", "control", "random"}
    assert len(found["units_lost_most"]) == 10


def test_models_that_cannot_be_compared_are_refused(call, saved, words_file):
    """Other tokenizers, other kinds, and a text too short for a linear map."""
    causal, masked = saved("causal", "llama"), saved("masked", "bert")
    code, _, err = call("inspect-student", masked, causal, "--text", words_file)
    assert (code, "masked language modeling" in err) == (4, True)
    other = saved("other", "llama")
    write_words(other, 60)
    code, _, err = call("inspect-student", other, causal, "--text", words_file)
    assert (code, "have different tokenizers" in err) == (3, True)
    words_file.write_text("w7 w8 w9 w10 " * 5)
    code, _, err = call("inspect-student", causal, causal, "--text", words_file)
    assert (code, "has 20 tokens" in err) == (3, True)


def test_what_cannot_be_inspected_is_refused_before_the_pass(call, saved, tmp_path):
    model = saved("model", "gpt2")
    for neuron, message in (("1", "such as 12.345"), ("7.0", "There is no neuron 7.0")):
        code, _, err = call("inspect", model, "--output", tmp_path / "out", "--neuron", neuron)
        assert (code, message in err) == (2, True)
    assert not (tmp_path / "out").exists()
