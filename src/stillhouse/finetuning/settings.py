"""Fine-tuning settings of a recipe."""

from typing import Annotated, Any

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from stillhouse.objectives.settings import RelationRecipe
from stillhouse.section import Fraction, Name, Section
from stillhouse.tasks.settings import NamedTaskRecipe
from stillhouse.training.settings import OptimizerRecipe, ScheduleRecipe, TrainingRecipe


class TaskDataRecipe(Section):
    """Files of a task's examples: for training, and one or several validation splits.

    Of the training examples a sample of `num_train` is used, the same for every model and seed; by
    default all. Labels of `unlabeled` examples (a sample of `num_unlabeled`) are ignored: models
    with a teacher learn its predictions for them, and a model that neither has a teacher nor is one
    takes the same number of steps on `train`.
    """

    train: str
    """Training examples: a file or an `hf://` dataset."""
    validation: str | Annotated[dict[str, str], Field(min_length=1)]
    """Examples to score on: one file, or several splits by name."""
    num_train: PositiveInt | None = None
    """Number of training examples, the same for every model and seed; by default all."""
    unlabeled: str | None = None
    """Examples whose labels are not used; a model with a teacher learns the teacher's outputs on
    them."""
    num_unlabeled: PositiveInt | None = None
    """Number of unlabeled examples; by default all."""

    @property
    def splits(self) -> dict[str, str]:
        """The validation files, by the name of the split."""
        if isinstance(self.validation, str):
            return {"validation": self.validation}
        return self.validation

    @property
    def sources(self) -> dict[str, str]:
        """All files and datasets, by their keys, such as `train` and `validation.matched`."""
        unlabeled = {} if self.unlabeled is None else {"unlabeled": self.unlabeled}
        splits = {self.key_of(split): source for split, source in self.splits.items()}
        return {"train": self.train, **unlabeled, **splits}

    def key_of(self, split: str) -> str:
        """The key of the file of a split."""
        return "validation" if isinstance(self.validation, str) else f"validation.{split}"


class TaskOptimizerRecipe(OptimizerRecipe):
    """AdamW with the usual settings of fine-tuning (Devlin et al. 2019, appendix A.3)."""

    learning_rate: PositiveFloat = 5e-5
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    eps: PositiveFloat = 1e-8
    """Term that stabilizes AdamW's division."""
    max_grad_norm: PositiveFloat = 1.0
    """Norm that gradients are clipped to."""


class TaskScheduleRecipe(ScheduleRecipe):
    """A learning rate schedule with the usual warm-up of fine-tuning."""

    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the steps over which the learning rate rises."""


class TaskTrainingRecipe(TrainingRecipe):
    """Training on examples, with steps of `examples_per_step`.

    `evaluations` evenly spaced states of the training, including the last, are evaluated; the best
    one by the task's metric on the split `select` is kept, or the last where no split is named.
    """

    # Sections never change, so a narrower kind is safe.
    optimizer: TaskOptimizerRecipe = TaskOptimizerRecipe()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Optimizer."""
    schedule: TaskScheduleRecipe = TaskScheduleRecipe()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Learning rate schedule."""
    examples_per_step: PositiveInt = 32
    """Examples of one optimizer step, over all ranks."""
    evaluations: PositiveInt = 1
    """Evenly spaced states that are scored, the last among them."""
    select: str | None = None
    """Split whose metric selects the state to keep; by default the last state is kept."""


# Starts that the run itself makes.
MODELS_OF_A_RUN = ("teacher", "student", "student_init", "control")


class TaskModelRecipe(Section):
    """One model of a task: its start and its teacher.

    `start` is teacher, student, student_init or control (of this recipe), a folder, or a hub name;
    `teacher` another model of the same task, a folder, or a hub name.
    """

    start: str = "student"
    """Initial weights: teacher, student, student_init or control of this recipe, a folder, or a hub
    name."""
    layer_map: PositiveInt | Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    """Layers to keep: a number, spread evenly, or a list counted from 0; by default all."""
    teacher: str | None = None
    """Teacher to distill from: another model of the task, a folder, or a hub name."""


class TaskLossesRecipe(Section):
    """The weights of a task's loss terms; teacher terms apply to models with a teacher.

    Embeddings have embedding_cosine, embedding_mse and similarity in place of soft_target. If the
    teacher's have another size, the first two compare them through a learned projection.
    """

    hard_label: NonNegativeFloat = 0.5
    """Weight of the loss on labels."""
    soft_target: NonNegativeFloat = 0.5
    """Weight of the loss on the teacher's outputs; embeddings do not use it."""
    embedding_cosine: NonNegativeFloat = 0.0
    """Weight of 1 - cosine between the student's and the teacher's embeddings."""
    embedding_mse: NonNegativeFloat = 0.0
    """Weight of the mean squared error of embeddings."""
    similarity: NonNegativeFloat = 0.0
    """Weight of the squared error of the similarities within a group of embeddings."""
    relation: RelationRecipe | None = None
    """Self-relations of one attention layer, over all tokens."""

    def active(self) -> dict[str, float]:
        """The terms with a weight above zero, by name."""
        weights = self.model_dump(exclude={"relation"})
        if self.relation is not None:
            weights["relation"] = self.relation.weight
        return {name: weight for name, weight in weights.items() if weight > 0}

    @field_validator("relation")
    @classmethod
    def _relate_all_tokens(cls, relation: RelationRecipe | None) -> RelationRecipe | None:
        if relation is not None and relation.rows != "all":
            raise ValueError(f"rows is {relation.rows}; a task relates all tokens, so give all")
        return relation

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Any:
        if not self.active():
            raise ValueError("every weight is zero, so there is nothing to learn from")
        return self


def _default_models() -> dict[str, TaskModelRecipe]:
    return {
        "teacher": TaskModelRecipe(start="teacher"),
        "student": TaskModelRecipe(start="student"),
        "distilled": TaskModelRecipe(start="student", teacher="teacher"),
    }


class FinetuningRecipe(Section):
    """A task, and the models that are trained on it in order."""

    task: NamedTaskRecipe
    """Task, by name or with its settings."""
    data: TaskDataRecipe
    """Examples to train and score on."""
    models: Annotated[dict[Name, TaskModelRecipe], Field(min_length=1)] = Field(
        default_factory=_default_models
    )
    """Models to train, in this order."""
    temperature: PositiveFloat = 2.0
    """Temperature of both models' outputs in soft_target."""
    losses: TaskLossesRecipe = TaskLossesRecipe()
    """Weights of the objective's terms."""
    training: TaskTrainingRecipe = TaskTrainingRecipe()
    """Optimizer, schedule and number of steps."""

    @model_validator(mode="after")
    def _models_follow_one_another(self) -> Any:
        """(A teacher that is not a model of this task is a folder or a hub name.)"""
        done: set[str] = set()
        for name, model in self.models.items():
            if model.teacher in self.models and model.teacher not in done:
                raise ValueError(
                    f"models.{name} has the teacher {model.teacher}, which comes after it; put "
                    f"{model.teacher} first"
                )
            done.add(name)
        self._check_unlabeled()
        select = self.training.select
        if select is None and self.training.evaluations > 1:
            raise ValueError(
                f"training.evaluations is {self.training.evaluations}, but training.select names "
                "no split to choose the best state by"
            )
        if select is not None and select not in self.data.splits:
            raise ValueError(
                f"training.select is {select}, but data.validation has "
                f"{', '.join(self.data.splits)}"
            )
        return self

    def _check_unlabeled(self) -> None:
        """Refuse unlabeled data that no model would train on."""
        if self.data.unlabeled is None:
            if self.data.num_unlabeled is not None:
                raise ValueError("data.num_unlabeled is given, but data.unlabeled names no file")
            return
        if all(model.teacher is None for model in self.models.values()):
            raise ValueError("data.unlabeled is given, but no model has a teacher to label it")
        if self.task.kind == "embeddings":
            raise ValueError(
                "data.unlabeled is given, but embeddings need no labels; give all texts as "
                "data.train"
            )
