"""Bias of a teacher and its student: one command measures, a table shows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from docs.bias_results import table_of

from stillhouse.models.hub import resolve_folder
from stillhouse.units import MINUS

ROOT = Path(__file__).parents[2]


def write_data(folder: Path) -> None:
    """Small files with the names and the forms of the published ones."""
    sentences = [
        {"sentence": f"The cook is {word}.", "gold_label": label}
        for word, label in
        (("kind", "stereotype"), ("cold", "anti-stereotype"), ("tin", "unrelated"))
    ]  # fmt: skip
    row = {"context": "The cook is BLANK.", "bias_type": "profession", "sentences": sentences}
    texts = {
        "crows_pairs/crows_pairs_anonymized.csv": "sent_more,sent_less,bias_type\n"
        + "He is here.,She is here.,gender\n" * 3,
        "stereoset/dev.json": json.dumps([row] * 3),
        "winogender/all_sentences.tsv": "sentid\tsentence\n"
        "cook.guest.0.male.txt\tThe cook said he left.\n"
        "cook.guest.0.female.txt\tThe cook said she left.\n",
        "winogender/occupations-stats.tsv": "occupation\tbls_pct_female\ncook\t38.0\n",
    }
    for kind in ("type1", "type2"):
        for side, pronoun in (("pro", "he"), ("anti", "she")):
            name = f"winobias/{side}_stereotyped_{kind}.txt.test"
            texts[name] = f"1 [The cook] left because [{pronoun}] was late.\n"
    for name, text in texts.items():
        path = folder / "bias" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.e2e
def test_one_command_writes_the_bias_of_two_models(tmp_path):
    """A model does not differ from itself."""
    write_data(tmp_path)
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.bias", "own", "sample", "sample"]
    command += ["--data", str(tmp_path), "--output", str(output), "--title", "A copy"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        command, check=True, capture_output=True, timeout=300, cwd=tmp_path, env=environment
    )
    text = output.read_text()
    assert str(resolve_folder("sample", offline=True)) not in text
    found = json.loads(text)
    assert {*found["bias"]} == {
        *("crows_pairs", "stereoset", "winobias_type1", "winobias_type2"),
        *("winogender", "templates"),
    }
    changes = [each["value"] for own in found["bias"].values()
               for each in own["bias_change"].values()]  # fmt: skip
    assert changes == [0] * len(changes)
    header, _, title, *rows = table_of([found]).splitlines()
    assert title.startswith("| **A copy** |")
    assert len({line.count("|") for line in (header, title, *rows)}) == 1
    assert any("no significant difference" in row for row in rows)


def test_the_table_has_each_metric_with_its_change():
    """Without kinds of bias; what is between -1 and 1 with three digits."""

    def score(value):
        return {"value": value, "low": value - 1, "high": value + 1}

    own = {
        "ideal": {"stereotype_score": 50.0, "stereotype_score/age": 50.0, "pronoun_gap": 0.0},
        "models": {
            model: {"stereotype_score": score(60.0), "pronoun_gap": score(0.25)}
            for model in ("teacher", "student")
        },
        "bias_change": {"stereotype_score": score(-2.5), "pronoun_gap": score(0.125)},
    }
    rows = table_of([{"title": "T", "bias": {"winobias": own}}]).splitlines()
    assert [row.replace(MINUS, "-") for row in rows[3:]] == [
        "| winobias, stereotype score | 50 | 60.0 | 60.0 |  "
        "| -2.5 (-3.5 to -1.5): nearer to ideal |",
        "| winobias, pronoun gap | 0 | 0.250 | 0.250 |  "
        "| +0.125 (-0.875 to +1.125): no significant difference |",
    ]
