"""The teacher that travels in the package: small, complete, and worth copying."""

from pathlib import Path

import pytest

import stillhouse
from stillhouse.evaluation.compare import compare_models
from stillhouse.models.hub import resolve_folder

LARGEST_SIZE_BYTES = 12_000_000


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_folder("sample", offline=True)


def test_sample_teacher_is_at_most_twelve_megabytes(folder: Path) -> None:
    """It must not weigh on a download of the package."""
    assert sum(file.stat().st_size for file in folder.iterdir()) <= LARGEST_SIZE_BYTES


def test_sample_teacher_carries_safetensors_tokenizer_and_card(folder: Path) -> None:
    """It is an ordinary checkpoint, and its card says by which recipe it was made."""
    assert (folder / "model.safetensors").is_file()
    assert (folder / "tokenizer.json").is_file()
    assert "sample-teacher" in (folder / "README.md").read_text(encoding="utf-8")


def test_sample_teacher_writes_python_and_prose() -> None:
    """Greedy continuations look like what it has read."""
    teacher = stillhouse.load("sample", offline=True)
    [code] = teacher.generate("    def __init__(self", max_new_tokens=40, greedy=True)
    [prose] = teacher.generate("She looked at him, and", max_new_tokens=20, greedy=True)
    assert "self." in code
    assert prose.split()[-1].isascii()


@pytest.mark.slow
def test_sample_teacher_knows_the_held_out_sample_text(tmp_path: Path) -> None:
    """It has learned the sample text far better than an untrained model, whose bits per byte are
    near 4."""
    result = compare_models(["sample"], None, offline=True)
    assert result["models"]["sample"]["perplexity"]["bits_per_byte"] < 2.0
