"""Labels of a classification: one spelling for the names in data, recipes and models, and the
order of a model's outputs.

The positive class of F1 is the label 1 or true (as in scikit-learn), else the second one that a
recipe names. Where neither is given, none is assumed.

A label in data is a text, a whole number (also written 1.0) or true or false. Outputs of a model
are matched with labels by name, and by position only for the generic names LABEL_0, LABEL_1, ... of
transformers and where the recipe lists the numbers 0 to n - 1.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from transformers import PretrainedConfig

from stillhouse.errors import ModelError, RecipeError

WHOLE_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.0*)?")
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
LIST_AS_TEXT = re.compile(r"\[.*\]", re.DOTALL)
INVISIBLE = re.compile("[\u200b\u2060\ufeff]+")  # zero-width spaces
TWINS = {"0": "false", "1": "true", "false": "0", "true": "1"}
MOST_SHOWN = 12
OTHER_SEPARATORS = (";", "|")


def label_name(value: Any) -> str | None:
    """The normalized spelling of a label; None for values such as null, a list or a blank.

    Text is stripped of spaces and zero-width characters and composed (Unicode NFC). A whole number
    loses its fraction (1.0 is 1); true and false are lower case, as in JSON. A number with a
    fraction is a label only where it is text.
    """
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    text = str(value) if isinstance(value, str | int) else ""
    text = unicodedata.normalize("NFC", INVISIBLE.sub("", text)).strip()
    if text.lower() in ("false", "true"):
        return text.lower()
    if WHOLE_NUMBER.fullmatch(text):
        return str(int(text.partition(".")[0]))
    return None if text.lower() in ("", "nan") else text


def label_names(value: Any) -> list[str] | None:
    """The spellings of several labels: of a list, of comma-separated text, or of one label; blank
    ones are skipped. None for anything else, such as a list written as text or one-hot values."""
    if isinstance(value, str):
        if LIST_AS_TEXT.fullmatch(value.strip()):
            return None
        value = value.split(",")
    values = value if isinstance(value, list) else [value]
    numbers = [each for each in values if isinstance(each, int | float)]
    if len(set(numbers)) < len(numbers):  # as [0, 0, 1], which is no list of labels
        return None
    names = [label_name(each) for each in values if each != "" and not str(each).isspace()]
    return None if None in names else [name for name in names if name is not None]


def sorted_labels(names: Iterable[str]) -> list[str]:
    """Each label once: numbers in numeric order, then texts in alphabetical order."""

    texts = set(names)
    numbers = {name for name in texts if NUMBER.fullmatch(name)}
    return [*sorted(numbers, key=lambda name: (float(name), name)), *sorted(texts - numbers)]


def alike(names: Iterable[str]) -> list[str]:
    """The first group of labels that differ only in case; empty where there is none."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted_labels(names):
        groups[name.casefold()].append(name)
    return next((group for group in groups.values() if len(group) > 1), [])


def joined_by(names: Iterable[str]) -> tuple[str, str] | None:
    """A label that looks like several others joined by a separator, and the separator; else
    None."""
    known = set(names)
    for name, separator in product(sorted(known), OTHER_SEPARATORS):
        parts = [part.strip() for part in name.split(separator)]
        if len(parts) > 1 and not known.isdisjoint(parts):
            return name, separator
    return None


def listed(names: Sequence[str]) -> str:
    """The first dozen labels, for a message."""
    rest = len(names) - MOST_SHOWN
    return ", ".join(names[:MOST_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


class Labels:
    """Labels in the order of a model's outputs.

    A label is found by its name, in any case where that is unique, or by another spelling. 0 and 1
    also stand for false and true, and the reverse.
    """

    def __init__(
        self,
        names: Sequence[str],
        others: Mapping[str, int] | None = None,
        *,
        second: str | None = None,
    ) -> None:
        """The labels of a model's outputs.

        Args:
            others: Further spellings, each with its output.
            second: The second label of a recipe that names them.

        Raises:
            RecipeError: duplicate labels, such as 1 and 1.0, or a blank one.
        """
        self.names = list(names)
        self._others = dict(others or {})
        self._second = second
        self._exact: dict[str, int] = {}
        for place, name in enumerate(names):
            spelling = label_name(name)
            if spelling is None or spelling in self._exact:
                raise RecipeError(
                    f"The labels {listed(self.names)} are not {len(names)} different ones: "
                    f"{name!r} is blank or comes twice. Name each label once."
                )
            self._exact[spelling] = place
        folded = [name.casefold() for name in self._exact]
        self._loose = {name: place for place, name in enumerate(folded) if folded.count(name) == 1}
        for name, place in self._others.items():
            self._loose.setdefault(str(label_name(name)).casefold(), place)
        if set(self._exact) in ({"0", "1"}, {"false", "true"}):
            for name, place in self._exact.items():
                self._loose.setdefault(TWINS[name], place)

    @classmethod
    def given(
        cls, labels: Sequence[str] | Mapping[str, str], *, by_recipe: bool = True
    ) -> "Labels":
        """Labels of a recipe, or those that the data shows.

        A mapping gives the model's name for each label of the data.

        Where labels have names and data gives numbers, a number is a position among the names.
        """
        names = list(labels)
        models = labels.values() if isinstance(labels, Mapping) else ()
        others = {name: place for place, name in enumerate(models)}
        if not any(
            NUMBER.fullmatch(name) or label_name(name) in ("false", "true") for name in names
        ):
            others |= {str(place): place for place in range(len(names))}
        return cls(names, others, second=names[1] if by_recipe and len(names) > 1 else None)

    @classmethod
    def of_model(cls, names: Sequence[str]) -> "Labels":
        """A model's own labels; generic ones are also found by their numbers."""
        others = {str(place): place for place in range(len(names))} if is_generic(names) else {}
        return cls(names, others)

    @property
    def positive(self) -> str | None:
        """The positive class of two labels; None where it is not known."""
        place = self._exact.get("1", self._exact.get("true"))
        if place is not None:
            return self.names[place]
        return self.names[1] if is_generic(self.names) else self._second

    def find(self, value: Any) -> int | None:
        """The output of a label in data; None for one that is not known."""
        name = label_name(value)
        if name is None:
            return None
        return self._exact.get(name, self._loose.get(name.casefold()))

    def find_all(self, value: Any) -> tuple[int, ...] | None:
        """The outputs of a list of labels, or of comma-separated text; None where one is not
        known."""
        whole = self.find(value) if isinstance(value, str) else None
        if whole is not None:
            return (whole,)
        names = label_names(value)
        places = [self.find(name) for name in names or ()]
        if names is None or None in places:
            return None
        return tuple(dict.fromkeys(place for place in places if place is not None))

    def in_order_of(self, own: Sequence[str], model: str) -> "Labels":
        """The labels in the order of a model's outputs, matched by the model's names.

        Raises:
            RecipeError: the names differ from the labels, with both lists.
        """
        positions = list(range(len(self.names)))
        found = [self.find(name) for name in own]
        if len(own) != len(positions):
            raise mismatch(self.names, own, model)
        if set(found) == set(positions) and not is_generic(own):
            order = [place for place in found if place is not None]
        elif is_generic(own) or self.names == [str(place) for place in positions]:
            order = positions
        else:
            raise mismatch(self.names, own, model)
        others = {name: order.index(place) for name, place in self._others.items()}
        others |= {name: place for place, name in enumerate(own)}
        names = [self.names[place] for place in order]
        return Labels(names, others, second=self._second)


def labels_of_data(shown: Sequence[str], own: Sequence[str], model: str) -> Labels:
    """The labels of a model, in the data's spelling where it shows them.

    Raises:
        RecipeError: data with labels that the model lacks, with both lists.
    """
    outputs = Labels.of_model(own)
    found = {name: outputs.find(name) for name in shown}
    if None in found.values():
        raise mismatch(shown, own, model)
    names = list(own)
    if is_generic(own) and shown:
        names = [str(place) for place in range(len(own))]
    for name, place in found.items():
        assert place is not None
        names[place] = name
    return Labels(names, {name: place for place, name in enumerate(own)})


def is_generic(names: Sequence[str]) -> bool:
    """Whether these are the default names of transformers."""
    return all(name == f"LABEL_{place}" for place, name in enumerate(names))


def mismatch(labels: Sequence[str], own: Sequence[str], model: str) -> RecipeError:
    """The error for labels that do not match a model's names for its outputs."""
    return RecipeError(
        f"The data's labels are {listed(labels)}, but those of {model} are {listed(own)}. Map "
        "each label of the data to the model's name for it in `labels`, such as "
        f"{{{labels[0]}: NAME, {labels[-1]}: NAME}}."
    )


def labelled(labels: Sequence[str]) -> dict[str, Any]:
    """The settings of a model's configuration for these labels; none where they are unknown."""
    if not labels:
        return {}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def labels_of(config: PretrainedConfig) -> list[str]:
    """The model's labels in the order of its outputs.

    Raises:
        ModelError: they are numbered as other outputs.
    """
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    if sorted(names) != list(range(len(names))):
        raise ModelError(
            f"The model's config.json names labels for the outputs {sorted(names)} (id2label), but "
            f"outputs are numbered from 0 to {len(names) - 1}. Correct the numbers."
        )
    return [names[number] for number in range(len(names))]
