"""A tiny recipe and its run folder, and the command line called in this process."""

import hashlib
import json
import os
import random
import re
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

# What the command line imports on first use, so that no single test pays for it.
import stillhouse.check
import stillhouse.pipeline  # noqa: F401
from stillhouse.__main__ import _run

CAUSAL = """
teacher:
  family: gpt2
  num_layers: 3
  hidden_size: 16
  num_heads: 2
  dropout: 0.1
  training: {{tokens_per_step: 256, max_tokens: 2560, precision: fp32}}
corpus: {{source: {text}, documents: per_line, validation_fraction: 0.1}}
tokens:
  language_modeling: causal
  tokenizer: {{train: byte_bpe, vocabulary_size: 320}}
  sequence_length: 32
student: {{layer_map: 2}}
distillation:
  tokens_per_step: 256
  max_tokens: 4096
  precision: fp32
  control: {control}
  checkpoint: {{every_steps: 4}}
evaluation: {{speed: {speed}}}
report: {{model_name: tiny, license: apache-2.0}}
"""


@dataclass(frozen=True)
class Outcome:
    """The result of a command: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Outcome:
    """The program's entry point, with these arguments."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["stillhouse", *map(str, arguments)])
        code = _run()
    return Outcome(code, out.getvalue(), err.getvalue())


def write_text(path: Path, *, seed: int = 0, num_lines: int = 120) -> Path:
    """Lines of made-up words, the first ones common and the last ones rare."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 8))) for _ in range(80)]
    lines = [
        " ".join(draw.choices(words, weights=range(80, 0, -1), k=draw.randint(20, 90)))
        for _ in range(num_lines)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_recipe(folder: Path, *, control: str = "none", speed: str = "false") -> Path:
    text = write_text(folder / "text.txt")
    path = folder / "tiny.yaml"
    path.write_text(CAUSAL.format(text=text, control=control, speed=speed), encoding="utf-8")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def snapshot(run: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file of a run."""
    return {
        str(path.relative_to(run)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class TinyRun:
    """A recipe and its run folder, which a test may modify."""

    recipe: Path
    folder: Path

    def call(self, command: str, *more: object) -> Outcome:
        return call(command, self.recipe, "--run-dir", self.folder, *more)

    def copy(self, folder: Path) -> "TinyRun":
        """The same in another folder, replacing its content."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        return TinyRun(self.recipe, folder)

    def metrics(self) -> list[dict]:
        """Each complete line of the student's training."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
        lines = [json.loads(text) for text in texts if text.endswith("\n")]
        return [line for line in lines if line["model"] == "student"]

    def losses(self, num_steps: int) -> list[float]:
        """The loss of each step, after checking that every step occurs once."""
        lines = self.metrics()
        assert [line["step"] for line in lines] == list(range(1, num_steps + 1))
        return [line["loss"] for line in lines]

    def weights(self) -> str:
        """The hash of the student."""
        return sha256(self.folder / "student/model.safetensors")

    def checkpoints(self) -> list[Path]:
        """The student's, oldest first."""
        return sorted((self.folder / "checkpoints/student").glob("step-*"))


def refused(outcome: Outcome, code: int, *messages: str) -> None:
    """Asserts the exit code, each message (a regular expression), and no traceback."""
    assert outcome.code == code, outcome
    assert "Traceback" not in outcome.err
    assert outcome.err.count("error: ") == 1
    for message in messages:
        assert re.search(message, outcome.err), outcome.err
    table = os.environ.get("STILLHOUSE_TABLE")
    if table:
        case = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].removesuffix(" (call)")
        said = "error: " + outcome.err.partition("error: ")[2]
        with open(table, "a", encoding="utf-8") as file:
            file.write(json.dumps([case, outcome.code, said.strip()]) + "\n")


def half_written(folder: Path) -> list[Path]:
    """Files and folders that were not committed."""
    return [path for path in folder.rglob("*") if ".tmp-" in path.name]
