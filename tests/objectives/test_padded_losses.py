"""A vocabulary padded beyond the tokenizer's: its extra rows change no loss and learn nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.task_models import make_tokenizer
from tests.tiny_models import EVERY_FAMILY, is_causal, make_config
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from stillhouse.evaluation.perplexity import row_logits, sequence_losses
from stillhouse.families.registry import family_of
from stillhouse.models.load import load_model, save_model
from stillhouse.objectives.language_model import LanguageModelObjective, Teacher
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.tokens.batches import Batch

PADDING = 7
TERMS = (
    "soft_target",
    "reverse_kl",
    "jsd",
    "skew_kl",
    "total_variation",
    "logit_mse",
    "language_modeling",
)
LOSSES = LossesRecipe.model_validate({name: {"weight": 1.0} for name in TERMS})

every_family = pytest.mark.parametrize("name", EVERY_FAMILY)


def twins(name: str, folder: Path, seed: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two models of the same weights, one of them with rows in its vocabulary that no token has,
    all of them far above the others; both saved and loaded."""
    tokenizer = make_tokenizer(name)
    kind = AutoModelForCausalLM if is_causal(name) else AutoModelForMaskedLM
    torch.manual_seed(seed)
    model = kind.from_config(make_config(name, vocabulary=len(tokenizer)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    save_model(model, tokenizer, folder / f"plain-{seed}")
    model.resize_token_embeddings(len(tokenizer) + PADDING, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[len(tokenizer) :] = 3.0
    save_model(model, tokenizer, folder / f"padded-{seed}")
    plain, padded = (load_model(folder / f"{kind}-{seed}")[1] for kind in ("plain", "padded"))
    assert padded.config.vocab_size == plain.config.vocab_size + PADDING
    return plain, padded


def losses_and_gradient(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch
) -> tuple[dict[str, Any], torch.Tensor]:
    objective = LanguageModelObjective(
        family_of(student.config),
        LOSSES,
        teacher=Teacher(family_of(teacher.config), teacher),
        temperature=2.0,
    )
    loss, values = objective(student, batch, objective.weights)
    student.zero_grad()
    loss.backward()
    gradient = student.get_input_embeddings().weight.grad
    assert isinstance(gradient, torch.Tensor)
    return {name: float(value) for name, value in values.items()}, gradient


@every_family
def test_padding_of_the_vocabulary_changes_no_loss_and_gets_no_gradient(
    name: str, tmp_path: Path, batch_of: Any, words: Any
) -> None:
    """Of student, teacher or both: a padded model has the losses of its unpadded twin."""
    batch = batch_of([[words(7), words(4, 1)], [words(12, 2)]], 12, causal=is_causal(name))
    students, teachers = twins(name, tmp_path, 1), twins(name, tmp_path, 2)
    expected, gradient = losses_and_gradient(students[0], teachers[0], batch)
    for student, teacher in ((1, 1), (0, 1), (1, 0)):
        values, padded = losses_and_gradient(students[student], teachers[teacher], batch)
        assert values == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(padded[: len(gradient)], gradient, atol=1e-4, rtol=1e-4)
        assert not padded[len(gradient) :].any()


@every_family
@torch.inference_mode()
def test_padding_of_the_vocabulary_changes_no_evaluation(
    name: str, tmp_path: Path, batch_of: Any, words: Any
) -> None:
    """Losses of the predicted tokens, and the distributions that agreement is measured on."""
    batch = batch_of([[words(12)]], 12, causal=is_causal(name))
    plain, padded = twins(name, tmp_path, 1)
    family = family_of(plain.config)
    expected = sequence_losses(family, plain, batch)
    np.testing.assert_allclose(sequence_losses(family, padded, batch), expected, rtol=1e-5)
    logits = [torch.cat(list(row_logits(family, each, batch))) for each in (plain, padded)]
    torch.testing.assert_close(logits[1], logits[0])
