"""The examples of docs/guides/trainer.md run as they are printed, one after the other."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/guides/trainer.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore:.pin_memory. argument is set")
def test_the_examples_run(tiny_model, words, tmp_path, capsys):
    ids = [torch.tensor(words(12, seed)) for seed in range(8)]
    dataset = [{"input_ids": row, "labels": row} for row in ids]
    loader = DataLoader(dataset, batch_size=2)  # pyright: ignore[reportArgumentType]
    names = {
        "student": tiny_model("gpt2", num_layers=2),
        "teacher": tiny_model("gpt2", num_layers=3, seed=1),
        "dataset": dataset,
        "loader": loader,
        "micro_batches": list(loader)[:2],
        "output_dir": str(tmp_path / "out"),
        "cache_dir": tmp_path / "cache",
    }
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        exec(block, names)
    assert "soft_target" in capsys.readouterr().out
