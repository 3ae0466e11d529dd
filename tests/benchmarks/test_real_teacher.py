"""Students of a real teacher: one command makes the texts, the student and its results."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from docs.real_teacher import summary_of, table_of

ROOT = Path(__file__).parents[2]
SHAPE = ("openbookqa", "piqa", "arc_easy")


def write_data(folder: Path) -> None:
    """Files with the names and the forms of the real ones."""
    wikitext = folder / "wikitext"
    (wikitext / "wikitext-103").mkdir(parents=True)
    (wikitext / "wikitext-2").mkdir()
    article = "".join(f" The {n}th lamp of the harbour burned oil . \n" for n in range(40))
    articles = "".join(f" = Lamp {n} = \n \n{article}" for n in range(12))
    (wikitext / "wikitext-103" / "wiki.train.prefix.tokens").write_text(articles)
    (wikitext / "wikitext-2" / "valid.txt").write_text(article)
    (folder / "books").mkdir()
    novel = "\n\n".join(["The ship lay still that night, and nobody spoke. " * 30] * 6)
    for name, texts in {"us_speeches": ["My fellow citizens. " * 40], "books/en": [novel]}.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as lines:
            lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    choices = {"query": "Lamps burn", "choices": ["oil", "stone"], "gold": 0}
    options = {"context_options": ["The lamp", "The sea"], "continuation": "burned.", "gold": 0}
    sets = {f"zero_shot/{name}": choices for name in SHAPE}
    sets["zero_shot/winogrande"] = options
    sets["lambada/first-2500"] = {"text": "The lamp of the harbour burned oil"}
    for name, row in sets.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.jsonl").write_text(4 * (json.dumps(row) + "\n"))


@pytest.mark.e2e
def test_one_command_writes_the_results_of_a_student(tmp_path):
    """Trainings and scores of student and controls; a finished run is not repeated."""
    write_data(tmp_path / "shared" / "data")
    (tmp_path / "here").mkdir()
    output = tmp_path / "found.json"
    settings = ["teacher=sample", "student.layer_map=2", "distillation.max_tokens=1024"]
    settings += ["corpus.validation_fraction=0.2"]
    settings += [
        "tokens.sequence_length=64",
        "distillation.tokens_per_step=256",
        "evaluation.speed=false",
    ]
    command = [sys.executable, "-m", "benchmarks.real_teacher", "20", "--seed", "3"]
    command += ["--output", str(output), "--set", *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    outputs = []
    for _ in range(2):
        subprocess.run(
            command, check=True, capture_output=True, timeout=500, cwd=tmp_path / "here",
            env=environment,
        )  # fmt: skip
        outputs.append(output.read_text())
    assert outputs[0] == outputs[1]
    found = json.loads(outputs[0])
    assert (found["student"], found["seed"]) == ("20", 3)
    assert {*found["trainings"]} == {"student", "control", "control_same_time"}
    assert found["trainings"]["student"]["tokens"] == 1024
    assert {*found["zero_shot"]["sets"]} == {*SHAPE, "winogrande", "lambada"}
    assert all(each["num_examples"] == 4 for each in found["zero_shot"]["sets"].values())
    header, _, teacher, *models = table_of([found]).splitlines()
    assert teacher.startswith("| teacher | 5.1 M |")
    assert [row.split("|")[1].strip("* ") for row in models] == [
        "20 of 30 layers",
        "its control: same tokens, no teacher",
        "its control: same training time, no teacher",
    ]
    assert {row.count("|") for row in [header, teacher, *models]} == {header.count("|")}


def result(student: str, seed: int, loss: float, kept: float) -> dict:
    """A result with the figures that the table shows; the teacher's loss is 0."""

    def model(loss: float, parameters: int, speed: float) -> dict:
        perplexity = {"wikitext-2.txt": {"token": 2.718281828459045**loss}}
        return {
            "parameters": parameters,
            "perplexity_of": perplexity,
            "speed": {"generate_tokens_per_second": speed},
        }

    share = {"value": kept, "low": kept - 0.1, "high": kept + 0.1}
    scores = {name: {"accuracy": {"value": 0.5}} for name in ("teacher", "student")}
    names = (*SHAPE, "winogrande", "lambada")
    return {
        "student": student,
        "title": f"{student} layers",
        "seed": seed,
        "trainings": {"student": {"tokens": 1000, "seconds": 120}},
        "models": {"teacher": model(0, 10**8, 10), "student": model(loss, 9 * 10**7, 15)},
        "zero_shot": {
            "sets": {name: {"metric": "accuracy", "models": scores} for name in names},
            "gain_kept": {"student": share},
        },
    }


def test_the_table_has_means_of_losses_and_each_seeds_share_of_the_gain():
    """Seeds of one student are one row; a student without scores leaves their cells empty."""
    seeds = [result("24", 0, 0.02, 0.8), result("24", 1, 0.06, 0.7)]
    even = {**result("24-even", 0, 0.5, 0), "zero_shot": None}
    even["trainings"] = {"student": {"tokens": 500, "seconds": 60}}
    _, _, teacher, first, second = table_of([even, *seeds]).splitlines()
    assert "| 0.000 |" in teacher
    assert "50.0%" in teacher
    cells = [cell.strip() for cell in first.split("|")]
    assert cells[1:5] == ["**24 layers**, 2 seeds", "90.0 M (90%)", "1,000 (2)", "0.040 (+0.040)"]
    assert cells[-3:-1] == ["80% (70% to 90%), 70% (60% to 80%)", "1.50x"]
    assert [cell.strip() for cell in second.split("|")][4:11] == ["0.500 (+0.500)", *[""] * 6]


def test_the_summary_has_scored_students_with_the_range_of_their_seeds():
    """Students without scores are left out; of one seed the interval is shown."""
    seeds = [result("24", 0, 0.02, 0.8), result("24", 1, 0.06, 0.7), result("20", 0, 0.3, 0.5)]
    seeds[-1]["models"]["student"]["parameters"] = 8 * 10**7
    even = {**result("24-even", 0, 0.5, 0), "zero_shot": None}
    header, _, teacher, *students = summary_of([even, *seeds]).splitlines()
    assert teacher == "| teacher: SmolLM2-135M-Instruct | 100.0 M | 1x | 0.000 |  |"
    assert students == [
        "| **student**: 24 layers, 2 seeds | 90.0 M (90%) | 1.50x | 0.040 (+0.040) "
        "| 75% (70% to 80%) |",
        "| **student**: 20 layers, 1 seed | 80.0 M (80%) | 1.50x | 0.300 (+0.300) "
        "| 50% (40% to 60%) |",
    ]
    assert header.count("|") == teacher.count("|")
