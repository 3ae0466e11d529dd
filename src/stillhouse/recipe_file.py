"""A recipe's file: YAML to a checked `Recipe`, and every mistake to one message.

`load_recipe` turns whatever is wrong into one `RecipeError` that names the key, what was found, and
the nearest valid name.
"""

import difflib
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from stillhouse.errors import RecipeError
from stillhouse.recipe import Recipe, preset_of
from stillhouse.recipe_tasks import NAMED_TASKS, TASK_KINDS, TaskRecipe, task_recipes

# How pydantic calls the members of a union where it says which of them a value is not.
UNION_MEMBER = re.compile(
    r"named|trained|cached|int|str|bool|constrained-int|list\[.*\]|literal\[.*\]|"
    + "|".join(TASK_KINDS)
)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    files = (resources.files("stillhouse") / "recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def recipe_text(name_or_path: str) -> tuple[str, str]:
    """The recipe's name (the file's stem) and its text, from a packaged name or a path."""
    path = Path(name_or_path)
    if name_or_path in recipe_names():
        packaged = resources.files("stillhouse") / "recipes" / f"{name_or_path}.yaml"
        return name_or_path, packaged.read_text(encoding="utf-8")
    if path.is_file():
        try:
            return path.stem, path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"{path} is not UTF-8 text ({error.reason} at byte {error.start})."
            ) from error
    near = _nearest(name_or_path, recipe_names())
    raise RecipeError(
        f"There is no recipe {name_or_path!r}: neither a file nor a packaged recipe."
        f"{near} `stillhouse recipes` lists the packaged ones."
    )


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> tuple[str, Recipe]:
    """Read, override (`a.b=c`) and validate a recipe; returns its name and the recipe.

    Raises:
        RecipeError: no such recipe, broken YAML, an unknown key, a wrong type or value.
    """
    name, text = recipe_text(name_or_path)
    return name, parse_recipe(text, overrides, where=name_or_path)


def parse_recipe(text: str, overrides: Sequence[str] = (), *, where: str = "recipe") -> Recipe:
    """Validate a recipe's YAML text after applying `overrides`; `where` names it in errors."""
    data = _parse_yaml(text, where)
    if not isinstance(data, dict):
        raise RecipeError(
            f"{where}: a recipe is a mapping of keys to values, got {type(data).__name__}."
        )
    _write_out_preset(data, overrides)
    for override in overrides:
        _apply_override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_explain(error, where)) from error


def parse_task(name: str, overrides: Sequence[str] = ()) -> TaskRecipe:
    """A task by its name or kind, with `overrides` (`a.b=c`) applied.

    Raises:
        RecipeError: no such task, an unknown key, a wrong type or value.
    """
    known = [*NAMED_TASKS, *TASK_KINDS]
    if name not in known:
        raise RecipeError(f"There is no task {name!r}.{_nearest(name, known)}")
    kind = NAMED_TASKS[name]["kind"] if name in NAMED_TASKS else name
    data: dict[str, Any] = {"kind": name}
    for override in overrides:
        _apply_override(data, override)
    try:
        return task_recipes.validate_python(data)
    except ValidationError as error:
        raise RecipeError(_explain(error, f"task {name}", TASK_KINDS[kind])) from error


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{where}:{place} is not YAML: {problem}.") from error
    except (RecursionError, ValueError) as error:
        raise RecipeError(f"{where} cannot be read as YAML: {error}.") from error


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice, and anchors (a few lines of which can fill
    memory)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "aliases (*name) are not allowed", mark)
        return super().compose_node(parent, index)  # pyright: ignore[reportArgumentType]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key is a single word", key.start_mark)
            if key.value in seen:
                raise ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _write_out_preset(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Where --set changes one loss of a preset, write out the preset's losses, so the others
    stay."""
    if not any(override.strip().startswith("distillation.losses.") for override in overrides):
        return
    section = data.setdefault("distillation", {})
    if isinstance(section, dict) and "losses" not in section:
        terms = preset_of(section).get("losses", {})
        section["losses"] = {name: dict(term) for name, term in terms.items()}


def _apply_override(data: dict[str, Any], override: str) -> None:
    path, separator, value = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise RecipeError(
            "--set takes KEY.KEY=VALUE, such as seed=1 or tokens.sequence_length=256; got "
            f"{override!r}."
        )
    target = data
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise RecipeError(f"--set {override}: {key} is a value here, not a section.")
    target[keys[-1]] = _parse_yaml(value, f"--set {path}")


def _explain(error: ValidationError, where: str, root: type[BaseModel] = Recipe) -> str:
    lines = []
    for problem in error.errors():
        keys = _path_of(problem["loc"], unknown_key=problem["type"] == "extra_forbidden")
        path = ".".join(map(str, keys))
        if problem["type"] == "extra_forbidden":
            known = _fields_at(keys[:-1], root)
            lines.append(f"{path} is not a key of a recipe.{_nearest(str(keys[-1]), known)}")
        elif problem["type"] == "missing":
            lines.append(f"{path} is missing.")
        elif problem["type"] == "value_error":
            message = str(problem.get("ctx", {}).get("error"))
            lines.append(f"{path + ': ' if path else ''}{message}.")
        else:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            lines.append(f"{path}: {message}, got {problem['input']!r:.80}.")
    unique = list(dict.fromkeys(lines))
    return f"{where}: " + (
        unique[0] if len(unique) == 1 else "".join(f"\n  {line}" for line in unique)
    )


def _path_of(location: Sequence[int | str], *, unknown_key: bool) -> list[int | str]:
    """The user's own keys, without the members of unions that pydantic went through."""
    own = location[-1:] if unknown_key else ()
    inner = location[: len(location) - len(own)]
    return [*(key for key in inner if not UNION_MEMBER.fullmatch(str(key))), *own]


def _fields_at(keys: Sequence[int | str], root: type[BaseModel]) -> list[str]:
    """Names of the fields of the section that `keys` lead to from `root`."""
    section = root
    for key in keys:
        candidates = (
            _sections_in(section.model_fields[str(key)].annotation)
            if str(key) in section.model_fields
            else []
        )
        if not candidates:
            return []
        section = candidates[0]
    return list(section.model_fields)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for part in getattr(annotation, "__args__", ()) for found in _sections_in(part)]


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known here: {', '.join(known)}." if known else ""
