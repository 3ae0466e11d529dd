"""What a metric is, and the models that it is measured on.

A module of this folder lists its metrics as `METRICS`. The evaluation, the report's tables, the
summary of a run, `compare` and the model cards all read that list.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Integer
from transformers import PreTrainedModel

from stillhouse.evaluation.perplexity import Observer, UnitLosses
from stillhouse.families.base import Family
from stillhouse.section import LanguageModeling
from stillhouse.tasks.metrics import MetricSamples
from stillhouse.tokens.batches import SequenceSource
from stillhouse.training.progress import Reporter
from stillhouse.units import Unit

SCHEMA = 2  # of evaluation.json

Model = tuple[Family, PreTrainedModel]
Quality = tuple[dict[str, Any], UnitLosses]  # entries of evaluation.json, and the losses behind
Key = str | tuple[str, ...]  # a dotted path in a model's entry, or its parts
Group = Literal["size", "speed", "memory", "quality", "agreement", "training"]


class Scored(NamedTuple):
    """A model's metrics on a data set, and what results show beside them."""

    metrics: Mapping[str, MetricSamples]
    details: Any


@dataclass
class Cache:
    """Measurements that several seeds share: quality by model folder, memory by configuration,
    scores by folder, kind of task and data set, and what a smaller vocabulary costs."""

    quality: dict[Path, Quality] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    scores: dict[tuple[Path, str, str], Scored] = field(default_factory=dict)
    vocabulary: dict[str, Any] | None = None


@dataclass(frozen=True)
class Protocol:
    """How the quality of models is measured, by name.

    Attributes:
        score: Measures one model, with callbacks.
        num_batches: Batches that `score` takes.
        facts: How texts are cut for the first model.
    """

    score: Callable[[str, Observer], Quality]
    num_batches: Mapping[str, int]
    facts: Mapping[str, int]


@dataclass(frozen=True)
class Subjects:
    """Models that are measured side by side.

    Attributes:
        models: The first is the baseline of speed ratios.
        configurations: A key for each model; models with equal keys are timed once.
        validation: Sequences on which models are compared with the model `teacher`; None without
            a teacher.
        token_counts: Of the training text, for agreement by frequency.
        label: Prefix of progress lines.
    """

    folders: Mapping[str, Path]
    models: Mapping[str, Model]
    protocol: Protocol
    configurations: Mapping[str, str]
    reporter: Reporter
    validation: SequenceSource | None = None
    token_counts: Integer[np.ndarray, " V"] | None = None
    speed: bool = True
    label: str = ""
    cache: Cache = field(default_factory=Cache)


MeasureAll = Callable[[Subjects], Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Metric:
    """One number of a model in `evaluation.json`, how it is measured, and how it is shown.

    Attributes:
        key: Where the number is in a model's entry, such as `perplexity.token`.
        label: Its row in tables.
        measure: Entries for each model, merged into `evaluation.json`. Metrics that come from one
            measurement share the function, which runs once.
        lower_is_better: None where neither direction is better.
        language_modeling: The kind of model that has this metric; None for both.
        short: Column title in the summary of a run, which shows only metrics that have one.
        compared: Whether it is a row of the table of `compare`, which has no room for all.
        interval: Key of the interval of the ratio to the first model.
        missing: Text for a null.
    """

    group: Group
    key: Key
    label: str
    unit: Unit
    measure: MeasureAll
    lower_is_better: bool | None = None
    language_modeling: LanguageModeling | None = None
    short: str = ""
    compared: bool = False
    interval: str = ""
    missing: str = "not measured"


def read(entry: Mapping[str, Any] | None, key: Key) -> Any:
    """The value at a dotted path; None where a part of the path is missing."""
    value: Any = entry
    for part in key.split(".") if isinstance(key, str) else key:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


@contextmanager
def progress(reporter: Reporter, name: str, total: int) -> Iterator[Callable[..., None]]:
    """Gives the function to call after each batch, with its number of tokens, or after each turn;
    calls beyond `total` are not shown."""
    done = tokens = 0
    started = time.monotonic()

    def tick(num_tokens: int = 0) -> None:
        nonlocal done, tokens
        done, tokens = done + 1, tokens + num_tokens
        rate = {"tokens_per_second": tokens / (time.monotonic() - started)} if tokens else {}
        if done <= total:
            reporter.step(done, rate)

    reporter.start(name, 0, total)
    try:
        yield tick
    finally:
        reporter.finish()
