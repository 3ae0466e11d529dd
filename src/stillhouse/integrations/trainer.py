"""transformers' `Trainer` with the distillation objective.

    trainer = DistillationTrainer(
        model=student, args=TrainingArguments("out"), train_dataset=dataset,
        distillation_loss=DistillationLoss(losses, teacher=teacher, temperature=2.0),
    )
    trainer.train()

Everything else is the `Trainer`'s own: optimizer, schedule, logging, checkpoints, mixed precision,
gradient accumulation and data parallelism. A term is divided by its rows in the whole step, over
all micro-batches and processes, so results do not depend on how a step is split.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from stillhouse.integrations.loss import DistillationLoss
from stillhouse.section import Rows


class DistillationTrainer(Trainer):
    """A `Trainer` whose loss is a `DistillationLoss`; each term is logged beside the loss."""

    loss_is_scaled_for_ga = True  # it is divided by the rows of the whole step

    def __init__(self, *args: Any, distillation_loss: DistillationLoss, **kwargs: Any) -> None:
        """Args:
        distillation_loss: The teacher's device is the user's business; the student's is the
            `Trainer`'s.
        """
        super().__init__(*args, **kwargs)
        self.distillation_loss = distillation_loss
        self.model_accepts_loss_kwargs = True  # older versions divide the loss themselves otherwise
        self._num_rows: dict[Rows, int] | None = None
        self._terms: dict[str, list[float]] = {}

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of a step, whose rows are counted over all processes."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = self.distillation_loss.count_rows(self._student(self.model), batches)
        self._num_rows = {kind: int(self._over_processes(count)) for kind, count in counts.items()}
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of one micro-batch; while evaluating, by its own rows."""
        student = self._student(model)
        num_rows = self._num_rows if model.training else None

        def objective() -> Tensor:
            with self.accelerator.autocast():
                output = self.distillation_loss(student, inputs, num_rows=num_rows)
            if model.training:
                for name, value in output.terms.items():
                    self._terms.setdefault(name, []).append(value)
            return output.loss

        loss = _called_through(model, student, objective)
        if num_rows is not None:  # gradients are averaged over the processes
            loss = loss * self.accelerator.num_processes
        return (loss, {"loss": loss}) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The `Trainer`'s own, with the mean of each term over the steps since the last log."""
        if "loss" in logs and self._terms:
            steps = max(1, self.state.global_step - self._steps_at_last_log)
            logs |= {
                name: self._over_processes(sum(values)) / steps
                for name, values in self._terms.items()
            }
            self._terms, self._steps_at_last_log = {}, self.state.global_step
        super().log(logs, *args, **kwargs)

    _steps_at_last_log = 0

    def _over_processes(self, number: int | float) -> float:
        """The sum of a number of each process."""
        own = torch.tensor([number], dtype=torch.float64, device=self.accelerator.device)
        return float(torch.as_tensor(self.accelerator.gather(own)).sum())

    def _student(self, model: Any) -> PreTrainedModel:
        return self.accelerator.unwrap_model(model)


def _called_through(wrapper: nn.Module, module: nn.Module, work: Any) -> Tensor:
    """Do `work` inside the wrapper's own forward pass, in which data parallelism prepares to sum
    gradients."""
    if wrapper is module:
        return work()
    own = module.forward

    def forward(*_: Any, **__: Any) -> Tensor:
        module.forward = own
        return work()

    module.forward = forward
    try:
        return wrapper()
    finally:
        module.forward = own
