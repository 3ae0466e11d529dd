"""What callers of the Python API pass: a text or a list of them, pairs, keyword settings.

Contract: a single input gives a single result, a list gives a list. Whatever is not understood
raises a RecipeError that says what is taken, and which name is meant by an unknown keyword. A list
may be anything that has texts in order: a tuple, a generator, a numpy array, a pandas Series.
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
from stillhouse.tasks.texts import TextExample

Function = TypeVar("Function", bound=Callable[..., Any])

# What transformers and OpenAI's clients call it, where no similar name would be found.
ELSEWHERE = {
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
CLOSE = 0.65  # how alike a name must be to be meant


def checked_arguments(function: Function) -> Function:
    """A method that names the nearest of its arguments where a keyword is unknown."""
    known = list(inspect.signature(function).parameters)[1:]

    @functools.wraps(function)
    def checked(self: Any, *arguments: Any, **keywords: Any) -> Any:
        refuse_unknown(keywords, known, f"{function.__name__}()")
        return function(self, *arguments, **keywords)

    return cast("Function", checked)


def refuse_unknown(keywords: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raises:
    RecipeError: a keyword that is not known, with the name that is meant.
    """
    for name in keywords:
        if name in known:
            continue
        meant = ELSEWHERE.get(name, "")
        if meant.partition(" ")[0] not in known:
            meant = next(iter(difflib.get_close_matches(name, known, 1, cutoff=CLOSE)), "")
        hint = f" Did you mean {meant}?" if meant else ""
        raise RecipeError(f"{where} does not take {name!r}; it takes {', '.join(known)}.{hint}")


def generation_of(settings: Mapping[str, Any]) -> Generation:
    """Keyword arguments as settings; `stop` may be one text or several.

    Raises:
        RecipeError: an unknown name, a value of another type, or one that cannot be.
    """
    kinds = {field.name: type(field.default) for field in fields(Generation)} | {"seed": int}
    refuse_unknown(settings, list(kinds), "generate()")
    given = dict(settings)
    if "stop" in given:
        given["stop"] = tuple(texts_of(given["stop"], "stop")[0])
    for name, value in given.items():
        kind = kinds[name]
        if name == "seed" and value is None:
            continue
        wanted = {int: Integral, float: Real}.get(kind, kind)  # numpy's numbers too
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            words = {int: "a whole number", float: "a number", bool: "True or False"}
            raise RecipeError(f"{name} is {value!r}; it must be {words.get(kind, kind.__name__)}.")
        given[name] = kind(value)
    return Generation(**given)


def texts_of(given: Any, name: str) -> tuple[list[str], bool]:
    """The texts that were given, and whether it was a single one.

    Raises:
        RecipeError: neither a text nor a list of texts.
        DataError: half a surrogate pair.
    """
    if isinstance(given, str):
        return [checked_text(given)], True
    items = as_list(given)
    if items is None:
        raise RecipeError(f"{name} must be a text or a list of texts; got {_shown(given)}.")
    for number, each in enumerate(items):
        if not isinstance(each, str):
            raise RecipeError(
                f"{name} must be a text or a list of texts; got {_shown(each)} as item {number}."
            )
    return [checked_text(each) for each in items], False


def as_list(given: Any) -> list[Any] | None:
    """The items of whatever has them in order, but for tables, which iterate over their columns;
    None for what is no list."""
    unfit = (str, bytes, bytearray, Mapping, Set)
    if not isinstance(given, Iterable) or isinstance(given, unfit) or hasattr(given, "columns"):
        return None
    return list(given)


def checked_text(text: str) -> str:
    """The text itself.

    Raises:
        DataError: it has half of a surrogate pair, as undecodable bytes of a command line have.
    """
    check_whole_characters(text, "The text")
    return text


def examples_of(given: Any, pair: Any = None) -> tuple[list[TextExample], bool]:
    """The texts or pairs of texts that were given, and whether it was a single one.

    A pair is a tuple, a dictionary of `text` and `text_pair`, or `pair` beside the text; a list
    holds several of any of these.

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
    items = None if isinstance(given, tuple) else as_list(given)  # a tuple is a pair
    if items is None:
        return [_example(given)], True
    examples = [_example(each) for each in items]
    if len({example.pair is None for example in examples}) > 1:
        raise RecipeError("Some inputs are pairs and some are single texts; give one kind a call.")
    return examples, False


def questions_of(question: Any, context: Any) -> tuple[list[tuple[str, str]], bool]:
    """The questions and contexts that were given, and whether it was a single one.

    One context beside several questions is that of all; a question may be a dictionary of
    `question` and `context`, or a list of those.

    Raises:
        RecipeError: something else.
    """
    if context is None:
        items = None if isinstance(question, tuple) else as_list(question)  # a tuple is both
        found = [question] if items is None else items
        return [_fields(each, ("question", "context")) for each in found], items is None
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


def _example(given: Any) -> TextExample:
    if isinstance(given, str):
        return TextExample(checked_text(given))
    if isinstance(given, Mapping) and "text_pair" not in given:
        return TextExample(*_fields(given, ("text",)))
    return TextExample(*_fields(given, ("text", "text_pair")))


def _fields(given: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """The texts of a dictionary with these keys, or of a tuple or list of as many."""
    found: tuple[Any, ...]
    if isinstance(given, Mapping):
        found = tuple(given.get(name) for name in names) if set(given) == set(names) else ()
    else:
        found = tuple(given) if isinstance(given, tuple | list) else ()
    if len(found) != len(names) or not all(isinstance(each, str) for each in found):
        wanted = f"a dictionary of {' and '.join(names)}, or a tuple of them"
        raise RecipeError(
            f"An input must be {'a text, ' if names[0] == 'text' else ''}{wanted}, or a list of "
            f"those; got {_shown(given)}."
        )
    return tuple(map(checked_text, found))


def _shown(given: Any) -> str:
    text = repr(given)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(given).__name__})"
