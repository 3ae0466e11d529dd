"""The models that a server has, by their names."""

from collections.abc import Sequence

from stillhouse.serving.hosted import Hosted
from stillhouse.serving.problems import Problem

# What clients send as a model's name where their user gave none: huggingface_hub's, and the one of
# Text Generation Inference.
NO_NAMES = ("", "dummy", "tgi")


class Models:
    """The served models; the first is the one that answers where no name is asked for."""

    def __init__(self, models: Sequence[Hosted]) -> None:
        self.models = tuple(models)

    def named(self, name: str | None, task: str | None = None) -> Hosted:
        """The model of a name; where none is given (see `NO_NAMES`), the first, of those that do
        this task (as pipelines name it) if one does.

        Raises:
            Problem: 404, with the names there are.
        """
        for hosted in self.models:
            if hosted.name == name:
                return hosted
        if name is None or name in NO_NAMES:
            able = [each for each in self.models if each.loaded.pipeline_task == task]
            return (able or self.models)[0]
        names = ", ".join(hosted.name for hosted in self.models)
        raise Problem(404, f"There is no model {name!r} here; there is {names}.", param="model")
