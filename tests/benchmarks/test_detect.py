"""The benchmark of detection: its texts, and the tables of its results."""

import gzip
import json

import numpy as np
import pytest
from benchmarks.detect import single_rates
from benchmarks.detect_texts import Cell, excerpts, generate_missing, read_texts, replace_words
from docs.detect_results import SINGLE, rates_of, single_of

from stillhouse.detection.features import FEATURES
from stillhouse.inference.load import load


@pytest.fixture(scope="module")
def sample():
    return load("sample", offline=True)


@pytest.fixture
def data(tmp_path):
    """Ten speeches of 300 words."""
    with gzip.open(tmp_path / "us_speeches.jsonl.gz", "wt", encoding="utf-8") as file:
        for number in range(10):
            text = " ".join(f"word{number} of the list" for _ in range(75))
            file.write(json.dumps({"id": f"speech-{number}", "text": text}) + "\n")
    return tmp_path


def test_excerpts_are_the_same_whatever_their_number(data, sample):
    few, more = (excerpts(data, "speeches", "test", n, sample.tokenizer) for n in (3, 10))
    assert more[:3] == few
    assert len({each.document for each in more}) == 10
    for each in few:
        assert len(sample.encode(each.prompt)) in (15, 16, 17)
        assert not each.text.startswith(each.prompt)
        assert each.document[-1] in each.prompt


def test_generation_resumes_and_adds(sample, tmp_path):
    """A text that is there is kept; a text depends on its prompt and place alone."""
    cell = Cell("own", "test", "sample", settings={"max_new_tokens": 6})
    prompts = ["The list of", "A string is", "The file"]
    assert generate_missing(tmp_path, sample, [(cell, prompts[:2])]) == 2
    first = read_texts(tmp_path, cell, 2)
    assert generate_missing(tmp_path, sample, [(cell, prompts)]) == 1
    assert read_texts(tmp_path, cell, 3)[:2] == first
    (tmp_path / "other").mkdir()
    generate_missing(tmp_path / "other", sample, [(cell, prompts)])
    assert read_texts(tmp_path / "other", cell, 3) == read_texts(tmp_path, cell, 3)


def test_words_are_replaced_at_the_given_rate():
    """The others stay, with their punctuation and place; a seed gives the same text again."""
    text = " ".join(f"one{number}," for number in range(200))
    found = replace_words(text, 0.3, ["other"], 5)
    assert found == replace_words(text, 0.3, ["other"], 5)
    words = found.split()
    assert words.count("other,") == 60
    assert all(new in (old, "other,") for old, new in zip(text.split(), words, strict=True))


def test_single_feature_tells_in_its_own_direction():
    """Machine text has a lower rank and a higher log-probability."""
    human, machine = np.zeros((100, len(FEATURES))), np.zeros((30, len(FEATURES)))
    machine[:, FEATURES.index("log_rank")] = -1
    machine[:, FEATURES.index("log_probability")] = 1
    for name in ("log_rank", "log_probability"):
        found = single_rates(name, human, human, machine)
        assert (found["auroc"]["value"], found["true_positives"]) == (1, 1)
        assert found["false_positives"] == 0


def test_tables_have_each_test_and_length():
    own = {
        "num_human": 200,
        "num_machine": 40,
        "true_positives": 0.75,
        "false_positives": 0.01,
        "auroc": {"value": 0.9, "low": 0.85, "high": 0.95},
        "calibration_error": 0.04,
    }
    own["single"] = {name: {**own, "true_positives": 0.5} for name in SINGLE}
    found = [{"tests": {"as fitted": {"50": own, "150": own}}}]
    rows = rates_of(found).splitlines()[2:]
    assert rows == [
        f"| {title} | {length} | 200 + 40 | 0.900 (0.850 to 0.950) | 75.0 % | 1.0 % | 0.040 |"
        for title, length in (("as fitted", 50), ("", 150))
    ]
    (row,) = single_of(found).splitlines()[2:]
    assert row == "| as fitted | 0.900, 75.0 %" + " | 0.900, 50.0 %" * 4 + " |"
