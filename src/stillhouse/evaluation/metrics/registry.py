"""The list of all metrics: a file in this folder is enough to add one.

In each group, those of the file that is named like it come first.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any, get_args

from stillhouse.evaluation import metrics
from stillhouse.evaluation.metrics.base import Group, Metric, Subjects
from stillhouse.section import LanguageModeling


def _all_metrics() -> list[Metric]:
    groups = get_args(Group)
    names = {found.name for found in iter_modules(metrics.__path__)} - {"base", "registry"}
    modules = [
        import_module(f"{metrics.__name__}.{name}")
        for name in sorted(names, key=lambda name: (name not in groups, name))
    ]
    listed = [metric for module in modules for metric in module.METRICS]
    return sorted(listed, key=lambda metric: groups.index(metric.group))


METRICS = _all_metrics()


def metrics_of(language_modeling: LanguageModeling) -> list[Metric]:
    """The metrics of one kind of language model, in the order of tables."""
    return [each for each in METRICS if each.language_modeling in (None, language_modeling)]


def measure(subjects: Subjects) -> dict[str, dict[str, Any]]:
    """Every metric of every model: the entries of `models` in `evaluation.json`."""
    found: dict[str, dict[str, Any]] = {name: {} for name in subjects.models}
    for step in dict.fromkeys(metric.measure for metric in METRICS):
        for name, values in step(subjects).items():
            found[name] |= values
    return found
