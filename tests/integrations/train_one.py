"""One process of a training by `DistillationTrainer`: python -m tests.integrations.train_one FOLDER
SEQUENCES NAME, alone or under torchrun."""

import json
import sys
from pathlib import Path

import torch
from tests.integrations.test_trainer import LOSSES, Examples, trained
from transformers import AutoModelForCausalLM

from stillhouse.integrations.loss import DistillationLoss


def words(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 60, (count,), generator=generator).tolist()


def main() -> None:
    folder, sequences, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder / each) for each in ("student", "teacher")
    )
    loss = DistillationLoss(LOSSES, teacher=teacher, temperature=2.0)
    trainer = trained(student, loss, Examples(words), folder / "out", sequences, 2)
    if trainer.is_world_process_zero():
        student.save_pretrained(folder / name)
        (folder / f"{name}.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main()
