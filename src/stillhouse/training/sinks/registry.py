"""The sinks by name."""

import importlib
from collections.abc import Sequence
from typing import NamedTuple

from stillhouse.extras import EXTRAS, require
from stillhouse.training.sinks.base import Sink, SinkRun


class SinkEntry(NamedTuple):
    """Where a sink's class is, as `module:class`, and whether it has a process of its own.

    A library that is slow to import, hangs without its server, prints, or reads its settings once
    for all runs has one.
    """

    place: str
    own_process: bool = True


SINKS = {
    "tensorboard": SinkEntry("tensorboard:TensorBoard", own_process=False),
    "trackio": SinkEntry("trackio:Trackio"),
    "wandb": SinkEntry("wandb:WeightsAndBiases"),
    "mlflow": SinkEntry("mlflow:MLflow"),
}


def open_sink(name: str, run: SinkRun) -> Sink:
    """The sink of this name, opened for a training."""
    module, _, kind = SINKS[name].place.partition(":")
    return getattr(importlib.import_module(f"stillhouse.training.sinks.{module}"), kind)(run)


def check_sinks(names: Sequence[str]) -> None:
    """Check that the libraries of these sinks are installed.

    Raises:
        RecipeError: one is not.
    """
    for name in names:
        if name in EXTRAS:
            require(name, purpose=f"metrics: {name}")
