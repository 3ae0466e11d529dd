"""The steps of other toolkits of today, run by their own code, with losses matched to ours.

    pip install --constraint constraints.txt --requirement benchmarks/peers.txt

TextBrewer's GeneralDistiller, for BERT to DistilBERT, through its `train` over one batch. It has no
bfloat16 (its half precision is Apex); autocast is put around its call. `ckpt_frequency=0` keeps it
from writing a checkpoint after every step. Its soft-target loss is the mean over rows of the
cross-entropy at a temperature, without temperature^2: its weight takes that factor, and the
teacher's entropy is subtracted where values are compared. Its cosine loss and hard loss are ours.

TRL's GKDTrainer, for GPT-2 to DistilGPT2 and for SmolLM2's shape with 24 of 30 layers, through its
`training_step` on the data as they come (`lmbda=0`); clipping and update follow as in its loop. Its
loss is the generalized Jensen-Shannon divergence, its beta the teacher's share of the mixture as in
ours, over positions whose next token has a label. Its `temperature` is that of sampling alone: the
loss is always taken at temperature 1. It switches dropout off, so ours has none either. Left at
their defaults would be slower: gradient checkpointing, and a cache of keys and values in both
models.

Both get a teacher in bfloat16 where they run in bfloat16, and a fused AdamW, as ours does.
"""

import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, PreTrainedTokenizerFast

from benchmarks import measure
from benchmarks.equality import Outcome, outcome_of
from benchmarks.ours import CPU, PAIRS, Losses, Models, Pair, build_batch, classic_losses
from benchmarks.reference_2019 import MAX_GRAD_NORM, TEMPERATURE, WEIGHTS, PaddedBatch
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.section import Rows
from stillhouse.tokens.batches import IGNORED, Batch
from stillhouse.training.device import Precision, autocast, has_bf16

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
import textbrewer  # pyright: ignore[reportMissingImports]
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from trl.experimental.gkd import (  # pyright: ignore[reportMissingImports]
    GKDConfig,
    GKDTrainer,
)

GPT2_WITHOUT_DROPOUT = Pair(
    partial(GPT2Config, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    PAIRS["gpt2"].sequences,
    PAIRS["gpt2"].length,
)


def _precisions(name: str) -> dict[str, Precision]:
    """A peer's step in float32, and in bfloat16 if the CPU supports it."""
    both: dict[str, Precision] = {name: "fp32", f"{name}-bf16": "bf16"}
    return {step: kind for step, kind in both.items() if kind == "fp32" or has_bf16(CPU)}


def _teacher_in(models: Models, precision: Precision) -> None:
    if precision == "bf16":
        models.teacher.to(torch.bfloat16)  # pyright: ignore[reportArgumentType, reportCallIssue]


@dataclass(frozen=True)
class AgainstTextBrewer:
    """The three classic terms."""

    rows: Rows
    seed: int
    pair: Pair = PAIRS["bert"]

    @property
    def title(self) -> str:
        return f"{self.pair.name} against TextBrewer {version('textbrewer')}"

    @property
    def references(self) -> Mapping[str, Precision]:
        return _precisions("textbrewer")

    @property
    def losses(self) -> Losses:
        return classic_losses(self.rows)

    def batch(self) -> Batch:
        return build_batch(self.pair, self.seed)

    def _padded(self) -> PaddedBatch:
        return PaddedBatch.of(self.batch())

    def reference_outcomes(self, models: Models) -> dict[str, Outcome]:
        """TextBrewer's own total, minus the teacher's entropy."""
        models.student.eval()
        batch = self._padded()
        total, found = _distiller(models, batch, self.rows).train_on_batch(_inputs(batch), {})
        entropy = TEMPERATURE**2 * _teacher_entropy(models, batch, self.rows)
        terms = {
            "soft_target": TEMPERATURE**2 * found["unweighted_kd_loss"] - entropy,
            "language_modeling": found["unweighted_hard_label_loss"],
            "hidden_cosine": found["unweighted_hidden_cos_0_0"],
        }
        loss = total - WEIGHTS["soft_target"] * entropy
        return {"textbrewer": outcome_of(models.student, loss, terms)}

    def reference_step(self, name: str, models: Models) -> measure.Step:
        """One pass of its `train` over one batch: forward, losses, backward, clipping, update."""
        precision = self.references[name]
        _teacher_in(models, precision)
        models.student.train()
        batch = self._padded()
        distiller, inputs = _distiller(models, batch, self.rows), _inputs(batch)
        optimizer = torch.optim.AdamW(models.student.parameters(), lr=5e-4, fused=True)

        def step() -> None:
            with autocast(CPU, precision):
                distiller.train(optimizer, [inputs], num_epochs=1, max_grad_norm=MAX_GRAD_NORM)

        return step


def _distiller(models: Models, batch: PaddedBatch, rows: Rows) -> Any:
    counted = batch.rows(rows).long()

    def adapt(_: Mapping[str, Tensor], output: Any) -> dict[str, Any]:
        losses = {} if output.loss is None else {"losses": output.loss}
        return losses | {
            "logits": output.logits,
            "logits_mask": counted,
            "inputs_mask": counted,
            "hidden": output.hidden_states[-1:],
        }

    cosine = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "cos"}
    return textbrewer.GeneralDistiller(
        textbrewer.TrainingConfig(device="cpu", output_dir=tempfile.gettempdir(), ckpt_frequency=0),
        textbrewer.DistillationConfig(
            temperature=TEMPERATURE,
            kd_loss_type="ce",
            kd_loss_weight=WEIGHTS["soft_target"] * TEMPERATURE**2,
            hard_label_weight=WEIGHTS["language_modeling"],
            intermediate_matches=[cosine | {"weight": WEIGHTS["hidden_cosine"]}],
        ),
        models.teacher,
        models.student,
        adapt,
        adapt,
    )


def _inputs(batch: PaddedBatch) -> dict[str, dict[str, Any]]:
    """Only the student's contain labels, so that the teacher computes no loss."""
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "output_hidden_states": True,
    }
    return {"teacher": inputs, "student": inputs | {"labels": batch.labels}}


def _teacher_entropy(models: Models, batch: PaddedBatch, rows: Rows) -> Tensor:
    """Mean over rows of the entropy of the softened teacher, in nats."""
    with torch.no_grad():
        output = models.teacher(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        logits = output.logits[batch.rows(rows)] / TEMPERATURE
    return torch.distributions.Categorical(logits=logits).entropy().mean()


@dataclass(frozen=True)
class AgainstTrl:
    """The generalized Jensen-Shannon divergence alone, on predicted rows."""

    seed: int
    pair: Pair = GPT2_WITHOUT_DROPOUT
    rows: Rows = "predicted"
    beta: float = 0.5

    @property
    def title(self) -> str:
        return f"{self.pair.name} against TRL {version('trl')} GKD"

    @property
    def references(self) -> Mapping[str, Precision]:
        return _precisions("trl")

    @property
    def losses(self) -> Losses:
        jsd = {"weight": 1.0, "rows": self.rows, "beta": self.beta}
        recipe = LossesRecipe.model_validate({"jsd": jsd})
        return Losses(recipe, 1.0)

    def batch(self) -> Batch:
        return build_batch(self.pair, self.seed)

    def _inputs(self) -> dict[str, Tensor]:
        """What its collator makes of a one-token prompt and the rest as completion."""
        batch = PaddedBatch.of(self.batch())
        labels = batch.labels.clone()
        labels[:, 0] = IGNORED
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        return inputs | {"labels": labels}

    def reference_outcomes(self, models: Models) -> dict[str, Outcome]:
        trainer = _trainer(models, "fp32", self.beta)
        samples, num_items = trainer.get_batch_samples(iter([self._inputs()]), 1, CPU)
        loss = trainer.compute_loss(models.student, samples[0], num_items_in_batch=num_items)
        return {"trl": outcome_of(models.student, loss, {"jsd": loss})}

    def reference_step(self, name: str, models: Models) -> measure.Step:
        precision = self.references[name]
        _teacher_in(models, precision)
        trainer = _trainer(models, precision, self.beta)
        model = trainer.accelerator.prepare(models.student)
        optimizer = trainer.create_optimizer()
        inputs = self._inputs()

        def step() -> None:
            samples, num_items = trainer.get_batch_samples(iter([dict(inputs)]), 1, CPU)
            trainer.training_step(model, samples[0], num_items)
            trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
            optimizer.step()
            model.zero_grad()

        return step


def _trainer(models: Models, precision: Precision, beta: float) -> Any:
    for model in (models.student, models.teacher):
        model.config.use_cache = False
    with warnings.catch_warnings():  # this version of TRL still says `gradient_checkpointing`
        warnings.simplefilter("ignore", FutureWarning)
        arguments = GKDConfig(
            output_dir=tempfile.gettempdir(),
            lmbda=0.0,
            beta=beta,
            bf16=precision == "bf16",
            gradient_checkpointing=False,
            max_grad_norm=MAX_GRAD_NORM,
            use_cpu=True,
            report_to="none",
        )
    return GKDTrainer(
        model=models.student,
        teacher_model=models.teacher,
        args=arguments,
        processing_class=_any_tokenizer(),
        train_dataset=Dataset.from_dict({"messages": [["x"]]}),
    )


def _any_tokenizer() -> PreTrainedTokenizerFast:
    """Required by the trainer and unused: it receives tokens."""
    backend = Tokenizer(WordLevel({"x": 0}, "x"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="x", eos_token="x")
