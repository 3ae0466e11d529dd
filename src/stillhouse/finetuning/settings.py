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
    """Files of a task's examples: to learn from, and one or several splits to be scored on.

    Of the training examples `num_train` are taken, the same ones for every model and seed; or all.
    Those of `transfer` (`num_transfer` of them) have no answers, or none that is looked at: what
    has a teacher learns from them what the teacher says, and a model that has none and teaches
    none takes as many steps on `train` alone.
    """

    train: str
    validation: str | Annotated[dict[str, str], Field(min_length=1)]
    num_train: PositiveInt | None = None
    transfer: str | None = None
    num_transfer: PositiveInt | None = None

    @property
    def splits(self) -> dict[str, str]:
        """The files to be scored on, by the name of the split."""
        if isinstance(self.validation, str):
            return {"validation": self.validation}
        return self.validation

    @property
    def sources(self) -> dict[str, str]:
        """All files and datasets, by their keys, such as `train` and `validation.matched`."""
        transfer = {} if self.transfer is None else {"transfer": self.transfer}
        splits = {self.key_of(split): source for split, source in self.splits.items()}
        return {"train": self.train, **transfer, **splits}

    def key_of(self, split: str) -> str:
        """The key of the file of a split."""
        return "validation" if isinstance(self.validation, str) else f"validation.{split}"


class TaskOptimizerRecipe(OptimizerRecipe):
    """AdamW, as models are fine-tuned with it (Devlin et al. 2019, appendix A.3)."""

    learning_rate: PositiveFloat = 5e-5
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0


class TaskScheduleRecipe(ScheduleRecipe):
    """The same, with the warm-up that is usual for a task."""

    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1


class TaskTrainingRecipe(TrainingRecipe):
    """Training on examples, whose steps are counted in them.

    `evaluations` states of the training, evenly spread, the last among them, are scored; the best
    one by the task's metric on the split `select` is kept, or the last where no split is named.
    """

    # Sections never change, so a narrower kind is safe.
    optimizer: TaskOptimizerRecipe = TaskOptimizerRecipe()  # pyright: ignore[reportIncompatibleVariableOverride]
    schedule: TaskScheduleRecipe = TaskScheduleRecipe()  # pyright: ignore[reportIncompatibleVariableOverride]
    examples_per_step: PositiveInt = 32
    evaluations: PositiveInt = 1
    select: str | None = None


class TaskModelRecipe(Section):
    """One model of a task: what it starts from, and what teaches it.

    `start` is teacher, student, student_init or control (of this recipe), a folder, or a hub name;
    `teacher` another model of the same task, a folder, or a hub name.
    """

    start: str = "student"
    layer_map: PositiveInt | Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    teacher: str | None = None


class TaskLossesRecipe(Section):
    """The weights of a task's terms; those of a teacher count where there is one.

    Vectors have vector_cosine, vector_mse and similarity in place of soft_target.
    """

    hard_target: NonNegativeFloat = 0.5
    soft_target: NonNegativeFloat = 0.5
    vector_cosine: NonNegativeFloat = 0.0
    vector_mse: NonNegativeFloat = 0.0
    similarity: NonNegativeFloat = 0.0
    relation: RelationRecipe | None = None  # over all tokens

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
    """A task, and the models that are trained on it in turn."""

    task: NamedTaskRecipe
    data: TaskDataRecipe
    models: Annotated[dict[Name, TaskModelRecipe], Field(min_length=1)] = Field(
        default_factory=_default_models
    )
    temperature: PositiveFloat = 2.0  # with the weights of the losses as in 2019
    losses: TaskLossesRecipe = TaskLossesRecipe()
    training: TaskTrainingRecipe = TaskTrainingRecipe()

    @model_validator(mode="after")
    def _models_follow_one_another(self) -> Any:
        """(A teacher that is not a model of this task is a folder or a hub name.)"""
        done: set[str] = set()
        for name, model in self.models.items():
            if model.teacher in self.models and model.teacher not in done:
                raise ValueError(
                    f"models.{name} is taught by {model.teacher}, which comes after it; put "
                    f"{model.teacher} first"
                )
            done.add(name)
        self._check_transfer()
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

    def _check_transfer(self) -> None:
        """Refuse texts without answers that nobody would learn from."""
        if self.data.transfer is None:
            if self.data.num_transfer is not None:
                raise ValueError("data.num_transfer is given, but data.transfer names no file")
            return
        if all(model.teacher is None for model in self.models.values()):
            raise ValueError(
                "data.transfer is given, but no model has a teacher to say what is right for it"
            )
        if self.task.kind == "embeddings":
            raise ValueError(
                "data.transfer is given, but vectors need no answers; give all texts as data.train"
            )
