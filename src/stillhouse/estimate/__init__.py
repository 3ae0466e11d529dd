"""How long each part of a run takes on this machine, before it runs."""

from stillhouse.estimate.language import LanguagePlan, language_parts
from stillhouse.estimate.parts import Part
from stillhouse.estimate.speeds import MeasuredSpeeds, Speeds
from stillhouse.estimate.tasks import TaskPlan, task_parts
from stillhouse.estimate.text import TextSize, text_size

__all__ = [
    "LanguagePlan",
    "MeasuredSpeeds",
    "Part",
    "Speeds",
    "TaskPlan",
    "TextSize",
    "language_parts",
    "task_parts",
    "text_size",
]
