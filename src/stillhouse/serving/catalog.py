"""The models that a server has, by their names."""

from collections.abc import Sequence

from stillhouse.serving.hosted import Hosted
from stillhouse.serving.problems import Problem


class Models:
    """The served models; the first is the one that answers where no name is asked for."""

    def __init__(self, models: Sequence[Hosted]) -> None:
        self.models = tuple(models)

    @property
    def first(self) -> Hosted:
        return self.models[0]

    def named(self, name: str) -> Hosted:
        """The model of a name.

        Raises:
            Problem: 404, with the names there are.
        """
        for hosted in self.models:
            if hosted.name == name:
                return hosted
        names = ", ".join(hosted.name for hosted in self.models)
        raise Problem(404, f"There is no model {name!r} here; there is {names}.", param="model")
