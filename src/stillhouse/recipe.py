"""The recipe: its sections in one model, and the checks across them.

`recipe_file` reads it from YAML. Checks that need the teacher's configuration (does layer 12
exist?) are made by the stages (`stillhouse.stages.check`).
"""

from typing import Annotated, Any

from pydantic import (
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from stillhouse.cleaning.settings import CleaningRecipe
from stillhouse.data.settings import CorpusRecipe
from stillhouse.distillation.settings import CacheRecipe, DistillationRecipe
from stillhouse.energy.settings import EnergyRecipe
from stillhouse.evaluation.settings import EvaluationRecipe
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.report.settings import ReportRecipe
from stillhouse.section import Name, Section
from stillhouse.student.settings import StudentRecipe
from stillhouse.tasks.settings import Seed
from stillhouse.teacher.settings import TeacherRecipe, TunedTeacherRecipe, kind_of_teacher
from stillhouse.tokens.settings import OWN_TOKENIZER, TokensRecipe
from stillhouse.training.settings import SinkName


class Recipe(Section):
    """A run, from raw text to an evaluated student."""

    seed: Seed | Annotated[list[Seed], Field(min_length=1)] = 0
    """Seed, or several seeds; each trains its own students."""
    teacher: Annotated[
        Annotated[str, Tag("named")]
        | Annotated[TeacherRecipe, Tag("trained")]
        | Annotated[TunedTeacherRecipe, Tag("tuned")],
        Discriminator(kind_of_teacher),
    ]
    """Teacher model: a folder, a GGUF file, a hub name, `sample`, `minilm`, `smollm2`, or a section
    that trains one: a new model of `family`, or a model to fine-tune, `start`."""
    corpus: CorpusRecipe | None = None
    """Text to distill on; without it only the tasks run."""
    cleaning: CleaningRecipe | None = None
    """Steps that clean the text before it is tokenized; by default it is taken as it is."""
    tokens: TokensRecipe = TokensRecipe()
    """Tokenizer, sequences and masking."""
    student: StudentRecipe = StudentRecipe()
    """Student model and its initial weights."""
    distillation: DistillationRecipe = Field(
        default_factory=lambda: DistillationRecipe.model_validate({})
    )
    """Losses and training of the student and its control."""
    finetuning: dict[Name, FinetuningRecipe] = Field(default={})
    """Tasks to fine-tune on, by name."""
    evaluation: EvaluationRecipe = EvaluationRecipe()
    """What is measured of each model."""
    report: ReportRecipe = ReportRecipe()
    """Name and license in the model card."""
    metrics: list[SinkName] = Field(default=["tensorboard"])
    """Tools that `metrics.jsonl` is copied to during training: `tensorboard`, `trackio`, `wandb`
    and `mlflow`, each local unless its own environment variables name a server."""
    energy: EnergyRecipe = EnergyRecipe()
    """Power, emissions and price, for the energy of each stage."""

    @property
    def seeds(self) -> list[int]:
        """The seeds as a list."""
        return [self.seed] if isinstance(self.seed, int) else self.seed

    @property
    def trains_its_teacher(self) -> bool:
        """Whether the stage teacher trains the teacher."""
        return not isinstance(self.teacher, str)

    @property
    def makes_its_teacher(self) -> bool:
        """Whether the stage teacher writes the teacher: it is trained, or keeps a part of its
        vocabulary."""
        return self.trains_its_teacher or self.student.vocabulary is not None

    @property
    def named_model(self) -> str | None:
        """The teacher, or the model that it fine-tunes: a folder, a GGUF file or a hub name; None
        for a teacher trained from random weights."""
        if isinstance(self.teacher, TunedTeacherRecipe):
            return self.teacher.start
        return self.teacher if isinstance(self.teacher, str) else None

    @property
    def text(self) -> CorpusRecipe:
        """The corpus of a recipe that has one."""
        assert self.corpus is not None
        return self.corpus

    @property
    def cache(self) -> CacheRecipe | None:
        """The teacher cache's settings, if the recipe uses one."""
        outputs = self.distillation.teacher_outputs
        return outputs if isinstance(outputs, CacheRecipe) else None

    def _check_starts(self) -> None:
        """Reject tasks' models that start from a model this recipe does not make."""
        made = {"student", "student_init"} if self.corpus is not None else set()
        if made and self.distillation.control in ("same_tokens", "both"):
            made.add("control")
        for name, task in self.finetuning.items():
            for model, settings in task.models.items():
                if settings.start in {"student", "student_init", "control"} - made:
                    raise ValueError(
                        f"finetuning.{name}.models.{model}.start is {settings.start}, which this "
                        "recipe does not make; give teacher, a folder or a hub name"
                    )

    @model_validator(mode="after")
    def _check_consistency(self) -> Any:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seed lists {self.seeds}; name each seed once")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError(f"metrics lists {', '.join(self.metrics)}; name each once")
        if self.corpus is None and not self.finetuning:
            raise ValueError("there is neither a corpus to distill on nor a task in finetuning")
        if self.corpus is None and self.cleaning is not None:
            raise ValueError("cleaning needs a corpus, and there is none")
        if self.corpus is None and self.trains_its_teacher:
            raise ValueError("training a teacher needs a corpus")
        self._check_starts()
        masked = self.tokens.language_modeling == "masked"
        if self.cache is not None and masked and self.tokens.masking.sampling == "per_batch":
            raise ValueError(
                "distillation.teacher_outputs is a cache, which needs the same mask in every "
                "epoch, but tokens.masking.sampling is per_batch; set it to per_sequence"
            )
        if self.student.vocabulary is not None and self.corpus is None:
            raise ValueError("student.vocabulary is chosen on the corpus, and there is none")
        if isinstance(self.teacher, TeacherRecipe):
            if (size := self.student.vocabulary) is not None:
                raise ValueError(
                    f"student.vocabulary is {size}, but the recipe trains its teacher from random "
                    "weights, on the same tokens; give the teacher a tokenizer of this size, as "
                    "tokens.tokenizer"
                )
            if self.tokens.tokenizer == "teacher":
                raise ValueError(
                    "tokens.tokenizer is 'teacher', but the recipe trains the teacher, which has "
                    "no tokenizer; "
                    f"give {OWN_TOKENIZER}"
                )
            from stillhouse.families.registry import family_named  # imports transformers

            does = family_named(self.teacher.family).language_modeling
            if does != self.tokens.language_modeling:
                raise ValueError(
                    f"teacher.family is {self.teacher.family}, which does not do "
                    f"{self.tokens.language_modeling} language modeling; set "
                    f"tokens.language_modeling to {does}"
                )
        return self
