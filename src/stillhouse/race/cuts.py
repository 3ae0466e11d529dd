"""Students cut from one teacher, whose layers, channels and heads are scored once for all."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel

from stillhouse.inference.reference import interleaved_rates
from stillhouse.models.load import load_model
from stillhouse.models.special_ids import take_generation_config
from stillhouse.race.candidates import Candidate
from stillhouse.race.speed import DecodingTimes, decoder
from stillhouse.student.calibration import Calibration
from stillhouse.student.importance import (
    LayerImportance,
    block_influence,
    loss_on,
    most_influential,
)
from stillhouse.student.initialize import student_from_teacher
from stillhouse.student.plan import plan_student
from stillhouse.student.reconstruction import Reconstruction, reconstruct
from stillhouse.student.width import KeptWidths, Scores, choose_widths
from stillhouse.training.device import pick_device


class Cuts:
    """A teacher, and the text on which its parts are scored."""

    def __init__(self, folder: Path, text: Calibration) -> None:
        self.folder = folder
        self.text = text
        self.family, self.teacher = load_model(folder)
        self.teacher.to(device=pick_device())  # pyright: ignore[reportCallIssue]
        self._widths: dict[str, Scores] = {}
        self._decoder: Callable[[], int] | None = None  # the teacher as it is timed

    @cached_property
    def _influence(self) -> list[float]:
        return block_influence(self.family, self.teacher, self.text)

    def layers(self, candidate: Candidate) -> LayerImportance:
        """The layers of the most block influence."""
        number = len(candidate.plan.layer_map)
        return most_influential(self.family, self._influence, number)

    def _widths_of(self, candidate: Candidate) -> KeptWidths:
        narrow = candidate.plan.narrow
        return choose_widths(self.family, self.teacher, narrow, self.text, self._widths)

    def student(self, candidate: Candidate) -> tuple[PreTrainedModel, KeptWidths]:
        """The candidate with its teacher's weights, and the channels and heads that it keeps."""
        layers, widths = self.layers(candidate).kept, self._widths_of(candidate)
        plan = plan_student(self.teacher.config, candidate.recipe, chosen=layers)
        student = student_from_teacher(self.teacher, plan, widths)
        take_generation_config(student, self.folder)
        return student, widths

    def reconstruct(
        self, candidate: Candidate, student: PreTrainedModel, widths: KeptWidths
    ) -> Reconstruction:
        """Fit the candidate's student to its teacher."""
        student.to(device=pick_device())  # pyright: ignore[reportCallIssue]
        layers = self.layers(candidate).kept
        found = reconstruct(self.teacher, student, layers, self.text, hidden=widths.hidden)
        student.to(device="cpu")  # pyright: ignore[reportCallIssue]
        return found

    def decoding_speeds(self, candidate: Candidate, times: DecodingTimes) -> dict[str, float]:
        """Decoded tokens/s of the candidate and of its teacher, as facts: medians of turns."""
        if self._decoder is None:
            self._decoder = decoder(times.converted(load_model(self.folder)[1]))
        student, _ = self.student(candidate)
        rates = interleaved_rates(
            {
                "teacher_tokens_per_second": self._decoder,
                "tokens_per_second": decoder(times.converted(student)),
            }
        )
        return dict(reversed(rates.items()))

    def loss(self, candidate: Candidate) -> float:
        """Its loss right after the cut, in nats per token."""
        student, _ = self.student(candidate)
        student.to(device=pick_device())  # pyright: ignore[reportCallIssue]
        return loss_on(candidate.plan.family, student, self.text)
