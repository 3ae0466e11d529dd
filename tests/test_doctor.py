"""`stillhouse doctor`: what this machine can do, and what in a run is intact."""

import json
import sys
from pathlib import Path

import pytest

from stillhouse.__main__ import _run
from stillhouse.runs.manifest import Inputs, commit_file, commit_folder
from stillhouse.runs.paths import RunFolder


def doctor(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["stillhouse", "doctor", *map(str, arguments)])
    code = _run()
    return code, *capsys.readouterr()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder with tokens, a student, a checkpoint, an evaluation and metrics."""
    run = RunFolder.at(tmp_path / "run")
    checkpoint = run.checkpoints("control") / "step-00000004"
    for folder in (run.tokens, run.student, checkpoint):
        with commit_folder(folder, Inputs("stage", {}, {})) as temporary:
            (temporary / "file.bin").write_bytes(b"content")
    run.recipe.write_text("seed: 0\n")
    commit_file(run.evaluation, b"{}", Inputs("evaluate", {}, {}))
    run.metrics.write_text('{"model": "student", "step": 1}\n{"model": "student", "step": 2}\n')
    return run


def test_the_machine_is_described(capsys, monkeypatch):
    """CPU, GPU, precision, disk and versions, each with its state."""
    code, out, _ = doctor(capsys, monkeypatch)
    assert code == 0
    for what in ("CPU", "GPU", "precision", "disk", "versions", "hub", "extra hub"):
        assert what in out
    findings = json.loads(doctor(capsys, monkeypatch, "--json")[1])
    assert {finding["state"] for finding in findings} <= {"ok", "missing"}
    assert set(findings[0]) == {"what", "state", "detail"}


def test_doctor_names_a_missing_extra_with_its_install_command(capsys, monkeypatch):
    """Without gigatoken, doctor says what happens then and how to get it."""
    assert "ok       extra fast" in doctor(capsys, monkeypatch)[1]
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    code, out, _ = doctor(capsys, monkeypatch)
    assert code == 0
    (line,) = [line for line in out.splitlines() if "extra fast" in line]
    assert line.startswith("missing")
    assert "without it tokenizers is used" in line
    assert "pip install 'stillhouse[fast]'" in line


def test_an_intact_run_is_said_to_be_intact(capsys, monkeypatch, run):
    """Every output and checkpoint has its line, and the exit code is 0."""
    code, out, _ = doctor(capsys, monkeypatch, run.path)
    assert code == 0
    for name in ("tokens", "student", "checkpoints/control/step-00000004", "evaluation.json"):
        assert name in out
    assert "student to step 2" in out
    assert "damaged" not in out


@pytest.mark.parametrize(
    "name", ["tokens/file.bin", "checkpoints/control/step-00000004/file.bin", "evaluation.json"]
)
def test_damage_is_found_and_is_the_exit_code(capsys, monkeypatch, run, name):
    """One changed byte anywhere: its output is named, with exit code 5."""
    path = run.path / name
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    code, out, _ = doctor(capsys, monkeypatch, run.path)
    assert code == 5
    (line,) = [line for line in out.splitlines() if line.startswith("damaged")]
    assert name.removesuffix("/file.bin") in line
    assert "does not match its SHA-256" in line


def test_broken_metrics_are_counted(capsys, monkeypatch, run):
    """Lines that cannot be read are damage too."""
    with run.metrics.open("a") as file:
        file.write('{"model": "student", "st\n[]\n')
    code, out, _ = doctor(capsys, monkeypatch, run.path)
    assert code == 5
    assert "2 lines cannot be read" in out


def test_the_runs_of_several_seeds_are_all_looked_at(capsys, monkeypatch, run):
    """Damage in one seed's student is damage of the run."""
    student = run.for_seed(1).student
    with commit_folder(student, Inputs("stage", {}, {})) as temporary:
        (temporary / "file.bin").write_bytes(b"content")
    assert "seed-1/student" in doctor(capsys, monkeypatch, run.path)[1]
    (student / "file.bin").unlink()
    assert doctor(capsys, monkeypatch, run.path)[0] == 5


def test_another_folder_is_no_run(capsys, monkeypatch, tmp_path):
    """What has no recipe.yaml is not judged."""
    code, _, err = doctor(capsys, monkeypatch, tmp_path)
    assert code == 5
    assert "is not a run folder: it has no recipe.yaml" in err
