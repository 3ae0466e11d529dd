"""The parts of a run that take time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part of a run, over all seeds: its seconds here, or why they cannot be estimated.

    `num_steps` and `step_seconds` are those of a training, of one seed; `setting` is the recipe's
    key that makes its steps shorter.
    """

    name: str
    seconds: float | None
    reason: str = ""
    num_steps: int | None = None
    step_seconds: float | None = None
    setting: str = ""
