"""Arguments of the Python API: a text or a list of texts, pairs, keyword settings.

Contract: a single input gives a single result, a list gives a list. Anything else raises a
RecipeError that names what is accepted, and the closest name for an unknown keyword. A list is any
ordered iterable of texts: a tuple, a generator, a numpy array, a pandas Series.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, TypeVar, cast

from stillhouse.data.text import check_whole_characters
from stillhouse.errors import RecipeError
from stillhouse.inference.generation import Generation
from stillhouse.tasks.encoded import TextExample

Function = TypeVar("Function", bound=Callable[..., Any])

# Names in transformers and OpenAI's clients, where no similar name would be found.
OTHER_NAMES = {
    "max_length": "max_new_tokens (which does not count the prompt)",
    "max_tokens": "max_new_tokens",
    "min_length": "stop",
    "do_sample": "greedy (greedy=True is do_sample=False)",
    "n": "num_return_sequences",
    "stop_strings": "stop",
    "text_pair": "pair",
    "topk": "top_k",
    "k": "top_k",
}
CLOSE = 0.65  # similarity of a name that is suggested
TYPES = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: (bool, "True or False"),
}


def checked_arguments(function: Function) -> Function:
    """A method that suggests the closest of its arguments for an unknown keyword."""
    known = list(inspect.signature(function).parameters)[1:]

    @functools.wraps(function)
    def checked(self: Any, *arguments: Any, **keywords: Any) -> Any:
        refuse_unknown(keywords, known, f"{function.__name__}()")
        return function(self, *arguments, **keywords)

    return cast("Function", checked)


def refuse_unknown(keywords: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raises:
    RecipeError: an unknown keyword, with the closest known one.
    """
    for name in keywords:
        if name in known:
            continue
        meant = OTHER_NAMES.get(name, "")
        if meant.partition(" ")[0] not in known:
            meant = next(iter(difflib.get_close_matches(name, known, 1, cutoff=CLOSE)), "")
        hint = f" Did you mean {meant}?" if meant else ""
        raise RecipeError(f"{where} does not take {name!r}; it takes {', '.join(known)}.{hint}")


def generation_of(settings: Mapping[str, Any]) -> Generation:
    """Keyword arguments as settings; `stop` may be one text or several.

    Raises:
        RecipeError: an unknown name, a value of another type, or an invalid value.
    """
    kinds = {field.name: type(field.default) for field in fields(Generation)} | {"seed": int}
    refuse_unknown(settings, list(kinds), "generate()")
    given = dict(settings)
    for name, value in settings.items():
        if name == "stop":
            given["stop"] = tuple(texts_of(value, "stop")[0])
        elif name != "seed" or value is not None:
            kind = kinds[name]
            accepted, words = TYPES[kind]  # numpy's numbers too
            if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
                raise RecipeError(f"{name} is {value!r}; it must be {words}.")
            given[name] = kind(value)
    return Generation(**given)


def texts_of(given: Any, name: str) -> tuple[list[str], bool]:
    """The given texts, and whether it was a single one.

    Raises:
        RecipeError: neither a text nor a list of texts.
        DataError: a lone surrogate.
    """
    single = isinstance(given, str)
    items = [given] if single else _as_list(given)
    if items is None:
        raise RecipeError(f"{name} must be a text or a list of texts; got {_shown(given)}.")
    for number, each in enumerate(items):
        if not isinstance(each, str):
            raise RecipeError(
                f"{name} must be a text or a list of texts; got {_shown(each)} as item {number}."
            )
        check_whole_characters(each, "The text")
    return items, single


def messages_of(given: Any) -> list[dict[str, str]]:
    """The messages of a conversation; a text is one message of the user.

    Raises:
        RecipeError: neither a text nor a list of messages.
    """
    items = [{"role": "user", "content": given}] if isinstance(given, str) else _as_list(given)
    for each in items or [given]:
        if not _is_message(each):
            raise RecipeError(
                'messages must be a text or a list of {"role": "user", "content": "..."}; got '
                f"{_shown(each)}."
            )
    return [dict(each) for each in items or ()]


def _is_message(given: Any) -> bool:
    return (
        isinstance(given, Mapping)
        and {"role", "content"} <= set(given)
        and all(isinstance(text, str) for text in given.values())
    )


def _as_list(given: Any) -> list[Any] | None:
    """The items of an ordered iterable; None for anything else, and for tables, which would give
    the names of their columns."""
    other = (str, bytes, bytearray, Mapping, Set)
    if not isinstance(given, Iterable) or isinstance(given, other) or hasattr(given, "columns"):
        return None
    return list(given)


def examples_of(given: Any, pair: Any = None) -> tuple[list[TextExample], bool]:
    """The given texts or pairs of texts, and whether it was a single one.

    A pair is a tuple, a dictionary of `text` and `text_pair`, or `text` with `pair`; a list holds
    several of any of these.

    Raises:
        RecipeError: something else, or pairs and single texts in one list.
    """
    if pair is not None:
        texts, single = texts_of(given, "text")
        pairs, single_pair = texts_of(pair, "pair")
        if len(texts) != len(pairs) or single != single_pair:
            raise RecipeError(
                f"There are {len(texts)} texts and {len(pairs)} in pair; give one for each."
            )
        return [TextExample(*both) for both in zip(texts, pairs, strict=True)], single
    items, single = _inputs(given)
    examples = [
        TextExample(*_fields(each, ("text",) if _is_one_text(each) else ("text", "text_pair")))
        for each in items
    ]
    if len({example.pair is None for example in examples}) > 1:
        raise RecipeError("Some inputs are pairs and some are single texts; give one kind a call.")
    return examples, single


def questions_of(question: Any, context: Any) -> tuple[list[tuple[str, str]], bool]:
    """The given questions with their contexts, and whether it was a single one.

    One context serves all questions, and one question all contexts; a question may be a dictionary
    of `question` and `context`, or a list of those.

    Raises:
        RecipeError: something else.
    """
    if context is None:
        items, single = _inputs(question)
        return [_fields(each, ("question", "context")) for each in items], single
    questions, single = texts_of(question, "question")
    contexts, one_context = texts_of(context, "context")
    if one_context:
        contexts *= len(questions)
    if single and not one_context:
        questions *= len(contexts)
    if len(questions) != len(contexts):
        raise RecipeError(
            f"There are {len(questions)} questions and {len(contexts)} contexts; give one for each."
        )
    return list(zip(questions, contexts, strict=True)), single and one_context


def _inputs(given: Any) -> tuple[list[Any], bool]:
    """The items of a list, or the one input; a tuple is one input of several texts."""
    items = None if isinstance(given, tuple) else _as_list(given)
    return ([given], True) if items is None else (items, False)


def _is_one_text(given: Any) -> bool:
    return isinstance(given, str) or (isinstance(given, Mapping) and "text_pair" not in given)


def _fields(given: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """The texts of a text, of a dictionary with these keys, or of a tuple or list of their
    number."""
    found: tuple[Any, ...] = ()
    if isinstance(given, str) and len(names) == 1:
        found = (given,)
    elif isinstance(given, Mapping) and set(given) == set(names):
        found = tuple(given[name] for name in names)
    elif isinstance(given, tuple | list):
        found = tuple(given)
    if len(found) != len(names) or not all(isinstance(each, str) for each in found):
        wanted = f"a dictionary of {' and '.join(names)}, or a tuple of them"
        raise RecipeError(
            f"An input must be {'a text, ' if names[0] == 'text' else ''}{wanted}, or a list of "
            f"those; got {_shown(given)}."
        )
    for each in found:
        check_whole_characters(each, "The text")
    return found


def _shown(given: Any) -> str:
    text = repr(given)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(given).__name__})"
