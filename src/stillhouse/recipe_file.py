"""A recipe's file: YAML to a validated `Recipe`, or one error that lists every mistake.

Each line of a `RecipeError` names the key as the user wrote it, the value found, and the nearest
valid name. `Recipe` is imported late: it loads torch, which listing recipes does not need.
"""

import difflib
import os
import re
import types
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag, TypeAdapter, ValidationError
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.parser import ParserError
from yaml.scanner import ScannerError

from stillhouse.errors import RecipeError
from stillhouse.tasks.settings import TASK_KINDS, NamedTaskRecipe, TaskRecipe, task_names

if TYPE_CHECKING:
    from stillhouse.recipe import Recipe

Key = int | str

# Keys that were renamed, old to new: an old one is refused with its new name, in every section that
# has the new one.
RENAMED_KEYS = {
    # tokens.masking
    "mask": "mask_fraction",
    "keep": "keep_fraction",
    "random": "random_fraction",
    "draw": "sampling",
    # finetuning.NAME.task
    "length": "max_length",
    "step": "doc_stride",
    "longest_answer": "max_answer_length",
    "question_length": "max_question_length",
    # finetuning.NAME.data
    "transfer": "unlabeled",
    "num_transfer": "num_unlabeled",
    # finetuning.NAME.losses
    "hard_target": "hard_label",
    "vector_cosine": "embedding_cosine",
    "vector_mse": "embedding_mse",
}
# For pydantic's types of problems, messages in a recipe's terms.
TYPE_MESSAGES = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "should be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "should be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "should be true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "should be a list"),
    "string_type": "should be a string",
    "dict_type": "should be a mapping of keys to values",
}
# Characters that start an alias, a tag or a comment in YAML; in --set they start a string.
TEXT_STARTS = tuple("*&!%@`#")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    files = (resources.files("stillhouse") / "recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def recipe_text(name_or_path: str) -> tuple[str, str]:
    """The recipe's name (the file's stem) and its text, from a packaged name or a path.

    Raises:
        RecipeError: neither, or a file that cannot be read.
    """
    if name_or_path in recipe_names():
        packaged = resources.files("stillhouse") / "recipes" / f"{name_or_path}.yaml"
        return name_or_path, packaged.read_text(encoding="utf-8")
    path = Path(name_or_path)
    if not os.path.exists(name_or_path):  # False also for invalid paths
        raise RecipeError(
            f"There is no recipe {name_or_path!r:.200}: neither a file (seen from {Path.cwd()}) "
            f"nor a packaged recipe.{_nearest_recipe(path)}"
        )
    if path.is_dir():
        inside = path / "recipe.yaml"
        advice = f" Did you mean {str(inside)!r}?" if inside.is_file() else ""
        raise RecipeError(f"{path} is a folder; a recipe is a YAML file.{advice}")
    try:
        return path.stem, path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start})."
        ) from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror}).") from error


def _nearest_recipe(path: Path) -> str:
    """Advice on a missing recipe: similar files in its folder, else packaged names."""
    try:
        beside = sorted(path.parent.glob("*.y*ml"))
    except (OSError, ValueError):  # an invalid path
        beside = []
    same = [file for file in beside if file.stem in (path.stem, path.name)]
    near = difflib.get_close_matches(path.name, [file.name for file in beside], n=1, cutoff=0.8)
    if found := [*same, *(path.parent / name for name in near)]:
        return f" Did you mean {str(found[0])!r}?"
    named = _nearest(path.name, recipe_names(), or_all=False)
    return f"{named} `stillhouse recipes` lists the packaged recipes."


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> "tuple[str, Recipe]":
    """Read, override (`a.b=c`) and validate a recipe; returns its name and the recipe.

    Raises:
        RecipeError: no such recipe, broken YAML, an unknown key, a wrong type or value.
    """
    name, text = recipe_text(name_or_path)
    return name, parse_recipe(text, overrides, where=name_or_path)


def parse_recipe(text: str, overrides: Sequence[str] = (), *, where: str = "recipe") -> "Recipe":
    """Validate a recipe's YAML text after applying `overrides`; `where` names it in errors."""
    data = _parse_yaml(text, where)
    if not isinstance(data, dict):
        found = "nothing: the file is empty" if data is None else type(data).__name__
        raise RecipeError(
            f"{where}: a recipe is a mapping of keys to values, got {found}. `stillhouse recipes "
            "quickstart` prints one to start from."
        )
    _write_out_preset(data, overrides)
    from stillhouse.recipe import Recipe  # loads PyTorch: not for a file that is no recipe

    return _validate(Recipe, data, overrides, where)


def parse_task(task: str | Mapping[str, Any], overrides: Sequence[str] = ()) -> TaskRecipe:
    """A task by its name or kind, or with its settings, with `overrides` (`a.b=c`) applied.

    Raises:
        RecipeError: no such task, an unknown key, a wrong type or value.
    """
    data: dict[str, Any] = {"kind": task} if isinstance(task, str) else dict(task)
    name = data["kind"]
    if name not in (known := task_names(TASK_KINDS)):
        raise RecipeError(f"There is no task {name!r}.{_nearest(name, known)}")
    return _validate(NamedTaskRecipe, data, overrides, f"task {name}")


def _validate(kind: Any, data: dict[str, Any], overrides: Sequence[str], where: str) -> Any:
    """The recipe or the task of these keys and values, with `overrides` applied."""
    for override in overrides:
        _apply_override(data, override)
    _check_characters(data, where)
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        raise RecipeError(explain(error, where, kind)) from error


def dump_recipe(recipe: "Recipe") -> str:
    """The whole recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors that complete and check YAML."""
    from stillhouse.recipe import Recipe

    schema = Recipe.model_json_schema()
    parts = schema["$defs"]
    del parts["DistillationRecipe"]["required"]  # a preset gives them
    for kind, section in TASK_KINDS.items():
        parts[section.__name__]["properties"]["kind"] = {"enum": task_names([kind])}
    for name in ("FinetuningRecipe", "ZeroShotRecipe"):
        keys = parts[name]["properties"]
        names = task_names(keys["task"]["discriminator"]["mapping"])
        keys["task"] = {"anyOf": [{"enum": names}, *keys["task"]["oneOf"]]}
    return schema


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if isinstance(error, (ParserError, ScannerError)) and "\n" in text.strip():
            problem += "; often a missing colon or wrong indentation on this line or the one before"
        raise RecipeError(f"{where}:{place} is not YAML: {problem}.") from error
    except (RecursionError, ValueError) as error:
        raise RecipeError(f"{where} cannot be read as YAML: {error}.") from error


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without duplicate keys, aliases (a few lines of which can fill memory) and keys
    without a value, of which a reader cannot tell whether they switch something on or off.

    As in YAML 1.2, `no` and `on`, `1:30`, `010` and dates are strings. Everything else resolves as
    in YAML 1.1, which `dump_recipe` writes.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (as the class above has it)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """A string; a surrogate pair, as JSON escapes it, becomes one character."""
        text = super().construct_scalar(node)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "aliases (*name) are not allowed", mark)
        return super().compose_node(parent, index)  # pyright: ignore[reportArgumentType]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key is a single word", key.start_mark)
            if key.value in seen:
                raise ConstructorError(
                    None, None, f"the key {key.value!r} appears twice", key.start_mark
                )
            if isinstance(value, yaml.ScalarNode) and value.value == "" and value.style is None:
                raise ConstructorError(
                    None,
                    None,
                    f"the key {key.value!r} has no value; write {{}} for a section with its "
                    "defaults, null for none, or leave the key out",
                    key.start_mark,
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for tag, pattern, firsts in (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9]\d*|[1-9]\d{0,2}(_\d{3})+|0x[0-9a-fA-F]+)", "-+0123456789"),
    ("float", r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]\d+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
):
    _StrictLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{tag}",
        re.compile(f"(?:{pattern})$"),
        [*firsts, ""] if tag == "null" else [*firsts],
    )


def _write_out_preset(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Before --set changes one loss of a preset, write out the preset's other losses."""
    if not any(override.strip().startswith("distillation.losses.") for override in overrides):
        return
    from stillhouse.distillation.settings import preset_of

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
    text = value.strip()
    is_text = text.startswith(TEXT_STARTS)
    target[keys[-1]] = text if is_text else _parse_yaml(value, f"--set {path}")


def _check_characters(data: Any, where: str, path: str = "") -> None:
    """Reject NUL characters and unpaired surrogates, which no file name or text can contain."""
    if isinstance(data, str) and "\0" in data:
        raise RecipeError(f"{where}: {path} contains a NUL character, got {data!r:.80}.")
    if isinstance(data, str) and any("\ud800" <= character <= "\udfff" for character in data):
        raise RecipeError(f"{where}: {path} contains a lone surrogate, got {data!r:.80}.")
    parts = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in parts:
        _check_characters(value, where, f"{path}.{key}" if path else str(key))


def explain(error: ValidationError, where: str, root: Any) -> str:
    """The problems of a recipe, a line each, with the keys as the user wrote them."""
    lines = []
    for problem in error.errors():
        keys, section = _users_path(problem["loc"], root)
        path = ".".join(map(str, keys))
        if problem["type"] == "extra_forbidden":
            known = list(section.model_fields) if section is not None else []
            lines.append(_unknown_key(path, str(keys[-1]), known))
        elif problem["type"] == "missing":
            lines.append(f"{path} is missing.")
        elif problem["type"] == "union_tag_invalid":
            lines.append(f"{path}: {_unknown_task(**problem.get('ctx', {}))}")
        elif problem["type"] in ("model_type", "model_attributes_type"):
            lines.append(
                f"{path}: a section is a mapping of keys to values; give some or leave it out, got "
                f"{problem['input']!r:.80}."
            )
        elif problem["type"] == "value_error":
            message = str(problem.get("ctx", {}).get("error"))
            lines.append(f"{path + ': ' if path else ''}{message}.")
        else:
            message = problem["msg"].removeprefix("Input ")
            message = TYPE_MESSAGES.get(problem["type"], message[0].lower() + message[1:])
            advice = _whole_number_advice(problem["input"]) if "int_" in problem["type"] else ""
            lines.append(f"{path}: {message}, got {problem['input']!r:.80}.{advice}")
    unique = list(dict.fromkeys(lines))
    return f"{where}: " + (
        unique[0] if len(unique) == 1 else "".join(f"\n  {line}" for line in unique)
    )


def _unknown_key(path: str, key: str, known: Sequence[str]) -> str:
    """The message for a key that its section does not have: its new name, or the nearest one."""
    renamed = RENAMED_KEYS.get(key)
    if renamed in known:
        return f"{path} was renamed to {renamed}; write {path.removesuffix(key)}{renamed}."
    if not known:
        section = path.removesuffix(f".{key}")
        return f"{path} is not a key of a recipe. {section} has none; write `{{}}`."
    return f"{path} is not a key of a recipe.{_nearest(key, known)}"


def _unknown_task(tag: str, expected_tags: str, **_: Any) -> str:
    """The message for a task that there is not, or whose kind the key does not take."""
    known = task_names([kind for kind in TASK_KINDS if repr(kind) in expected_tags])
    if tag in TASK_KINDS:
        return f"no task of the kind {tag} can be given here; give one of {', '.join(known)}."
    return f"there is no task {tag!r:.80}.{_nearest(tag, known)}"


def _whole_number_advice(value: Any) -> str:
    """How to write a number such as 1e6 where an integer is required."""
    text = str(value)
    if re.fullmatch(r"\d{1,3}(,\d{3})+", text):
        text = text.replace(",", "")
    try:
        number = float(text)
    except ValueError:
        return ""
    return f" Write it as {int(number)}." if number.is_integer() else ""


def _users_path(location: Sequence[Key], root: Any) -> tuple[list[Key], type[BaseModel] | None]:
    """The user's keys in pydantic's location of a problem, and the section of the last one.

    The location also names the members of unions; the annotations tell those from keys.
    """
    keys: list[Key] = []
    section: type[BaseModel] | None = None
    kind: Any = root
    for part in location:
        members = _union_members(kind)
        if len(members) > 1:  # the part names one of them
            kind = _member_named(str(part), members)
            continue
        kind = members[0]
        if part == "[key]":  # the key before it is invalid
            break
        keys.append(part)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            section = kind
            field = kind.model_fields.get(str(part))
            kind = None if field is None else field.annotation
        else:
            section, arguments = None, get_args(kind)
            kind = arguments[-1] if arguments else None
    return keys, section


def _union_members(annotation: Any) -> list[Any]:
    """The members of a union except None, without their annotations; else the type itself."""
    while get_origin(annotation) is Annotated and not _tag(annotation):
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return [
            each
            for part in get_args(annotation)
            if part is not type(None)
            for each in ([part] if _tag(part) else _union_members(part))
        ]
    return [annotation]


def _tag(annotation: Any) -> str | None:
    tags = [part.tag for part in getattr(annotation, "__metadata__", ()) if isinstance(part, Tag)]
    return tags[0] if tags else None


def _member_named(name: str, members: Sequence[Any]) -> Any:
    """The member of a union that pydantic's location names, by its tag, `kind` or type."""
    for member in members:
        if _tag(member) == name:
            return get_args(member)[0]
        if isinstance(member, type) and issubclass(member, BaseModel):
            kind = member.model_fields.get("kind")
            if name == member.__name__ or (kind is not None and kind.default == name):
                return member
        elif name.startswith(getattr(get_origin(member), "__name__", "no container")):
            return member
    return None


def _nearest(name: str, known: Sequence[str], *, or_all: bool = True) -> str:
    """Advice on an unknown name: the names it is a prefix of, the most similar one, or all."""
    longer = [each for each in known if len(name) > 2 and each.startswith(name)]
    near = longer or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        *others, last = map(repr, near)
        return f" Did you mean {', '.join(others) + ' or ' if others else ''}{last}?"
    return f" Known here: {', '.join(known)}." if known and or_all else ""
