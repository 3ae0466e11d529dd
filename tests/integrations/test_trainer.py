"""transformers' `Trainer` with the objective: the weights of a plain loop, however it is split."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset, SequentialSampler
from transformers import TrainingArguments

from stillhouse.integrations.loss import DistillationLoss
from stillhouse.integrations.trainer import DistillationTrainer
from stillhouse.tokens.batches import IGNORED

pytestmark = pytest.mark.e2e  # half a second or more each

LOSSES = {
    "soft_target": {"weight": 2.0, "rows": "all"},
    "language_modeling": {"weight": 1.0},
}
STEPS, PER_STEP, RATE = 3, 4, 0.05


class Examples(Dataset):
    """Sequences of 12 tokens with unlike numbers of labels."""

    def __init__(self, words):
        self.rows = [words(12, seed) for seed in range(STEPS * PER_STEP)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        ids = torch.tensor(self.rows[number])
        labels = ids.clone()
        labels[: number % 7] = IGNORED
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


class InOrder(DistillationTrainer):
    """Takes the examples in their order, as the plain loop does."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset or self.train_dataset)  # pyright: ignore


def plain_loop(student, loss, dataset):
    """Stochastic gradient descent in whole batches."""
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE)
    for step in range(STEPS):
        rows = [dataset[number] for number in range(step * PER_STEP, (step + 1) * PER_STEP)]
        inputs = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        loss(student, inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def trained(student, loss, dataset, folder, per_device, accumulation):
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation, num_train_epochs=1, learning_rate=RATE,
        lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0, logging_steps=1,
        save_strategy="no", report_to=[], use_cpu=True, seed=0, disable_tqdm=True,
    )  # fmt: skip
    trainer = InOrder(
        model=student, args=arguments, train_dataset=dataset, distillation_loss=loss,
        eval_dataset=dataset,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.fixture
def pair(tiny_model):
    return tiny_model("gpt2", num_layers=2), tiny_model("gpt2", num_layers=3, seed=1)


@pytest.mark.parametrize(("per_device", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_weights_are_those_of_a_plain_loop(pair, words, tmp_path, per_device, accumulation):
    """However a step is split, though its micro-batches have unlike numbers of labels."""
    student, teacher = pair
    expected, dataset = copy.deepcopy(student), Examples(words)
    loss = DistillationLoss(LOSSES, teacher=teacher, temperature=2.0)
    student.train(False)  # tiny models have no dropout
    plain_loop(expected, loss, dataset)
    trainer = trained(student, loss, dataset, tmp_path, per_device, accumulation)
    for (name, found), other in zip(student.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, other, atol=1e-5, rtol=1e-4, msg=name)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == STEPS
    for log in logs:  # each term beside the loss that it is a part of
        total = 2 * log["soft_target"] + log["language_modeling"]
        assert log["loss"] == pytest.approx(total, rel=1e-3)
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.e2e
def test_two_processes_train_as_one(pair, tmp_path):
    """With DistributedDataParallel, by torchrun: the same weights, the same logs."""
    for name, model in zip(("student", "teacher"), pair, strict=True):
        model.save_pretrained(tmp_path / name)
    program = ["-m", "tests.integrations.train_one", str(tmp_path)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = Path(__file__).parents[2]
    for command in ([*program, "2", "one"], [*launcher, *program, "1", "two"]):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=280, cwd=root
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    logs = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two")]
    for first, second in zip(*logs, strict=True):
        if "soft_target" in first:
            assert second["soft_target"] == pytest.approx(first["soft_target"], rel=1e-4)
            assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
