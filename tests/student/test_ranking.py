"""The importance of layers from the command line: table, losses, chart."""

import json
import re
import sys
import xml.etree.ElementTree as ET

import pytest

from stillhouse.__main__ import _run
from stillhouse.models.load import save_model


@pytest.fixture
def ranked(tmp_path, tiny_model, tiny_tokenizer, capsys, monkeypatch):
    """ranked(*options): exit code, stdout and stderr of the command on a tiny model and text."""
    tiny_tokenizer.eos_token = "[SEP]"
    model = tiny_model("llama", num_layers=4)
    save_model(model, tiny_tokenizer, tmp_path / "model")
    (tmp_path / "text.txt").write_text("w7 w8 w11 w9 w30 " * 60)

    def call(*options: str) -> tuple[int, str, str]:
        options = ("--text", str(tmp_path / "text.txt"), "--tokens", "96", *options)
        given = ["stillhouse", "importance", str(tmp_path / "model"), *options]
        monkeypatch.setattr(sys, "argv", given)
        return (_run(), *capsys.readouterr())

    return call


def test_the_chosen_layers_are_compared_with_evenly_spread_ones(ranked):
    """The losses are those of the whole model, of the layers chosen, and of every third layer."""
    code, out, _ = ranked("--layers", "2", "--by", "greedy", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["tokens"], len(found["scores"]), len(found["kept"])) == (96, 4, 2)
    assert found["distances"] == sorted(found["distances"])
    assert found["loss"]["greedy"] != found["loss"]["even"]


def test_the_table_marks_the_layers_to_keep(ranked, tmp_path):
    """And gives the layer map for a recipe; the chart has a bar for each layer."""
    code, out, err = ranked("--output", str(tmp_path / "layers.svg"))
    assert code == 0, err
    assert out.count("kept") == 2
    assert "student.layer_map: [" in out
    root = ET.parse(tmp_path / "layers.svg").getroot()
    bars = [each.attrib["class"] for each in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert sorted(bars) == ["bar student"] * 2 + ["bar teacher"] * 2


def test_all_layers_have_scores(ranked):
    """With none to drop, the table has a row and a score for each layer."""
    code, out, err = ranked("--layers", "4", "--by", "greedy")
    assert code == 0, err
    assert out.count("kept") == 4
    assert "distance without it" in out
    assert re.search(r"all\W+4\W", out)


def test_a_chart_that_exists_is_not_overwritten(ranked, tmp_path):
    """And nothing is measured first: the text of this call is not there either."""
    (tmp_path / "layers.svg").write_text("mine")
    code, _, err = ranked("--output", str(tmp_path / "layers.svg"), "--text", "none.txt")
    assert code == 2
    assert "layers.svg exists, and nothing is overwritten" in err
    assert (tmp_path / "layers.svg").read_text() == "mine"


def test_more_layers_than_there_are_is_refused(ranked):
    """By the name of the option."""
    code, _, err = ranked("--layers", "5")
    assert code == 2
    assert "--layers asks for 5 layers, but the teacher has 4" in err


def test_a_text_that_is_not_there_is_refused(ranked):
    """By the name of the option."""
    code, _, err = ranked("--text", "none.txt")
    assert code == 3
    assert "--text" in err
    assert "none.txt" in err
