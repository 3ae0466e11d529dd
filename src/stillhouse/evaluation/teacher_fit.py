"""Whether a teacher models the training text well: its loss compared with that of token counts.

A unigram model (token frequencies of the training split) knows nothing of order. On text like its
training data, a teacher reaches about half of that model's loss or less; above `WEAK` of it, the
teacher should be fine-tuned on the text first.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Integer
from transformers import PreTrainedModel

from stillhouse.errors import DataError, ModelError, RecipeError
from stillhouse.evaluation.perplexity import MASK_SEED, sequence_losses
from stillhouse.families.base import Family
from stillhouse.families.registry import check_sequence_length
from stillhouse.models.folder_check import load_config
from stillhouse.models.load import load_model
from stillhouse.recipe import Recipe
from stillhouse.runs.paths import RunFolder
from stillhouse.teacher.settings import TeacherRecipe, TunedTeacherRecipe
from stillhouse.tokens.batches import Batch
from stillhouse.tokens.packing import open_source
from stillhouse.tokens.shards import open_split
from stillhouse.tokens.tokenizer import check_vocabulary, open_tokenizer
from stillhouse.training.device import pick_device
from stillhouse.wording import counted

NUM_TOKENS = 4_096  # evaluated, about
WEAK = 0.75


@dataclass(frozen=True)
class TeacherFit:
    """A teacher's loss on some validation tokens, and that of their unigram counts, in nats."""

    loss: float
    unigram_loss: float
    tokens: int

    @property
    def is_weak(self) -> bool:
        return self.tokens > 0 and not self.loss <= WEAK * self.unigram_loss


def warning_of_a_weak_teacher(recipe: Recipe, run: RunFolder, folder: Path) -> str | None:
    """A warning for a user whose teacher, in `folder`, models the text poorly.

    None where it models the text well, is trained on it anyway, reads other tokens, or cannot be
    loaded: the stage that needs the teacher reports that error.
    """
    if recipe.makes_its_teacher or recipe.tokens.tokenizer != "teacher":
        return None
    try:
        check_sequence_length(recipe.tokens, load_config(folder))
        family, model = load_model(folder)
        check_vocabulary(open_tokenizer(run.tokens), model.config.vocab_size, str(folder))
    except (DataError, ModelError, RecipeError):
        return None
    model.to(device=pick_device())  # pyright: ignore[reportCallIssue]
    return warning(teacher_fit(recipe, run, family, model), recipe)


@torch.inference_mode()
def teacher_fit(
    recipe: Recipe, run: RunFolder, family: Family, model: PreTrainedModel
) -> TeacherFit:
    """Measure a teacher on sequences spread over the validation split."""
    source = open_source(run.tokens, recipe.tokens, "validation")
    most = max(1, NUM_TOKENS // source.sequence_length)
    numbers = np.linspace(0, source.num_sequences - 1, min(most, source.num_sequences))
    batch: Batch = source.batch(
        numbers.astype(np.int64), np.zeros(len(numbers), np.int64), MASK_SEED
    )
    labels = batch.labels[batch.rows("predicted")].numpy()
    log_unigram = unigram_log_probabilities(open_split(run.tokens, "train").counts)
    total = float(sequence_losses(family, model, batch).sum())
    count = max(1, len(labels))
    return TeacherFit(total / count, -float(log_unigram[labels].sum()) / count, len(labels))


def unigram_log_probabilities(counts: Integer[np.ndarray, " V"]) -> Float[np.ndarray, " V"]:
    """log p of each token, from its counts; unseen tokens share a part.

    With T tokens seen N times in all, a seen one has count / (N + T), and all others share
    T / (N + T) evenly. Source: Witten and Bell 1991, method C.
    """
    counts = counts.astype(np.float64)
    total, seen = counts.sum(), int((counts > 0).sum())
    unseen = len(counts) - seen
    spare = seen / unseen if unseen else 0.0
    return np.log(np.where(counts > 0, counts, spare)) - np.log(total + (seen if unseen else 0))


def warning(fit: TeacherFit, recipe: Recipe) -> str | None:
    """The figures of a weak teacher and what to change; None for a teacher that is not weak."""
    if not fit.is_weak:
        return None
    return (
        f"The teacher models this text poorly: over {counted(fit.tokens, 'token')} of the "
        f"validation split its loss of {fit.loss:.2f} nats is {fit.loss / fit.unigram_loss:.0%} of "
        f"the unigram loss ({fit.unigram_loss:.2f}); {WEAK:.0%} or less is usual. {advice(recipe)}"
    )


def advice(recipe: Recipe) -> str:
    """What to change in the recipe for a teacher that models the text better."""
    if isinstance(recipe.teacher, TeacherRecipe | TunedTeacherRecipe):
        return "Train it longer: raise teacher.training.epochs, or give it more text."
    distillation = recipe.distillation
    return (
        "Train it on the text first; in the recipe: "
        f"teacher: {{start: {recipe.teacher}, training: "
        f"{{tokens_per_step: {distillation.tokens_per_step}, "
        f"optimizer: {{learning_rate: {distillation.optimizer.learning_rate:g}}}}}}}"
    )
