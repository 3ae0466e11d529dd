"""Mistakes in a recipe's file: each error has the path that the user wrote, whatever the section's
type, and the advice that fits."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from tests.pipeline.tiny_run import call, refused

from stillhouse.errors import RecipeError
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import (
    RENAMED_KEYS,
    dump_recipe,
    explain,
    parse_recipe,
    parse_task,
    recipe_names,
    recipe_schema,
    recipe_text,
)
from stillhouse.section import Section
from stillhouse.tasks.settings import NAMED_TASKS, TASK_KINDS, ClassificationTask

Path = tuple[str, ...]

# What a section needs to be taken for what it is, where a recipe has several kinds in one place.
GIVEN: dict[str, dict[str, Any]] = {
    "TeacherRecipe": {"family": "gpt2"},
    "TunedTeacherRecipe": {"start": "a"},
    "CacheRecipe": {"cache": "sampled"},
    "TrainedTokenizer": {"train": "byte_bpe"},
    **{section.__name__: {"kind": kind} for kind, section in TASK_KINDS.items()},
}


def kinds_in(annotation: Any) -> Iterator[Any]:
    """The types of a union (None aside) without their annotations."""
    if get_origin(annotation) is Annotated:
        yield from kinds_in(get_args(annotation)[0])
    elif get_origin(annotation) in (list, dict, tuple) or not get_args(annotation):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from kinds_in(part)


def sections(
    section: type[BaseModel] = Recipe, path: Path = (), around: tuple[dict[str, Any], ...] = ({},)
) -> Iterator[tuple[type[BaseModel], Path, tuple[dict[str, Any], ...]]]:
    """Every section of a recipe, its path, and what each section on the way must hold. A key that a
    user chooses is called as the tag of a union."""
    yield section, path, around
    for name, field in section.model_fields.items():
        for kind in kinds_in(field.annotation):
            keys: Path = (name,)
            if get_origin(kind) is dict:
                keys, kind = (name, "classification"), get_args(kind)[1]
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                between = ({},) * (len(keys) - 1)
                given = GIVEN.get(kind.__name__, {})
                yield from sections(kind, path + keys, (*around, *between, given))


def nested(path: Path, around: tuple[dict[str, Any], ...], last: dict[str, Any]) -> dict[str, Any]:
    """A recipe that holds `last` at the path."""
    data = {**around[-1], **last}
    for key, given in zip(reversed(path), reversed(around[:-1]), strict=True):
        data = {**given, key: data}
    return data


def mistakes_in(data: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(yaml.safe_dump(data), where="r")
    return [line.removeprefix("r:").strip() for line in str(caught.value).splitlines()]


SECTIONS = list(sections())
WITH_KEYS = [each for each in SECTIONS if each[0].model_fields]


@pytest.mark.parametrize(
    ("section", "path", "around"),
    WITH_KEYS,
    ids=[f"{'.'.join(path)}-{section.__name__}" for section, path, _ in WITH_KEYS],
)
def test_an_unknown_key_has_the_path_that_the_user_wrote(section, path, around):
    """In every section, through every union on the way; the nearest name is one of its own."""
    own = max(section.model_fields, key=len)
    wrong = own[:-1] + "q"
    for line in mistakes_in(nested(path, around, {wrong: 1})):
        if wrong in line:
            assert line.startswith(f"{'.'.join((*path, wrong))} is not a key of a recipe. ")
            assert f"'{own}'" in line
            break
    else:
        pytest.fail(f"{wrong} is not named")


def test_a_section_without_keys_says_how_it_is_written():
    """There is no nearest name to suggest."""
    data = {"teacher": "sample", "corpus": {"source": "x"}, "cleaning": {"duplicates": {"x": 1}}}
    (line,) = mistakes_in(data)
    assert line == (
        "cleaning.duplicates.x is not a key of a recipe. cleaning.duplicates has none; write `{}`."
    )


@pytest.mark.parametrize(
    ("section", "path", "around"),
    SECTIONS,
    ids=[f"{'.'.join(path)}-{section.__name__}" for section, path, _ in SECTIONS],
)
def test_a_wrong_value_has_the_path_that_the_user_wrote(section, path, around):
    """For every key of every section, a value that its type cannot be."""
    for name, field in section.model_fields.items():
        for wrong in ({"odd": {}}, 5.5, [[]], None):
            try:
                TypeAdapter(field.annotation).validate_python(wrong)
            except ValidationError:
                break
            except Exception:  # the field has a discriminator
                break
        else:
            continue
        if name == "kind" or (wrong == {"odd": {}} and field.discriminator is not None):
            continue
        full = ".".join((*path, name))
        found = mistakes_in(nested(path, around, {name: wrong}))
        lines = [line for line in found if line.startswith(full)]
        assert lines, found
        for line in lines:
            rest = line.removeprefix(full)
            assert re.match(r"(\.(odd|[0-9]+|[a-z_]+))*(:| is not a key| is missing)", rest), line
            for inside in ("named", "trained", "tuned", "cached", "int:", "str:", "list[", "["):
                assert not rest.partition(":")[0].startswith(f".{inside}"), line


@pytest.mark.parametrize("name", [*NAMED_TASKS, *TASK_KINDS])
def test_a_task_s_unknown_key_has_its_path_and_its_task_s_names(name):
    """`max_length` misspelled, under the name of a task and under its kind."""
    task = {"task": {"kind": name, "max_lenght": 8}}
    (line,) = [line for line in mistakes_in({"finetuning": {name: task}}) if "max_lenght" in line]
    assert line == (
        f"finetuning.{name}.task.max_lenght is not a key of a recipe. Did you mean 'max_length'?"
    )


def test_renamed_key_is_refused_with_its_new_name():
    """In every section of a recipe that has the new name; no entry is there in vain."""
    needed = set()
    for section, path, around in SECTIONS:
        for old, new in RENAMED_KEYS.items():
            if new in section.model_fields and old not in section.model_fields:
                parent = "".join(f"{key}." for key in path)
                found = mistakes_in(nested(path, around, {old: 1}))
                assert f"{parent}{old} was renamed to {new}; write {parent}{new}." in found
                needed.add(old)
    assert needed == {*RENAMED_KEYS}


class Renamed(Section):
    sampling: int = 0


def test_renamed_key_of_another_section_is_an_unknown_key():
    """The new name is given only where it is a key."""
    with pytest.raises(ValidationError) as caught:
        Renamed.model_validate({"draw": 1, "mask": 1})
    assert explain(caught.value, "r", Renamed).splitlines()[1:] == [
        "  draw was renamed to sampling; write sampling.",
        "  mask is not a key of a recipe. Known here: sampling.",
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipe_is_valid_under_the_json_schema(name):
    """What the schema tells an editor is what the parser accepts."""
    recipe = yaml.safe_load(recipe_text(name)[1])
    jsonschema.validate(recipe, recipe_schema())
    with pytest.raises(jsonschema.ValidationError, match="'studnet' was unexpected"):
        jsonschema.validate({**recipe, "studnet": {}}, recipe_schema())


def test_every_key_of_the_json_schema_has_a_description():
    """The sentence beside the key in its section."""
    missing = {
        section.__module__
        for section, _, _ in SECTIONS
        for field in section.model_fields.values()
        if not field.description
    }
    assert missing == set()


def test_a_task_s_settings_have_their_own_paths():
    """Where a task is all there is (`score`, `predict`)."""
    with pytest.raises(
        RecipeError, match=r"^task sst2: max_lenght is not .* Did you mean 'max_length'\?$"
    ):
        parse_task("sst2", ["max_lenght=8"])
    with pytest.raises(RecipeError, match=r"^task sts: columns.txt is not .* 'text'"):
        parse_task("sts", ["columns.txt=8"])


def test_a_preset_that_is_not_there_is_one_mistake():
    """What the preset would have given is not missing."""
    lines = mistakes_in(
        {"teacher": "a", "corpus": {"source": "b"}, "distillation": {"preset": "slow"}}
    )
    assert lines == ["distillation.preset: should be 'fast' or 'classic', got 'slow'."]


def test_wrong_types_are_named_in_plain_words():
    settings = {
        "seed": "long",
        "teacher": "a",
        "corpus": {"source": "b"},
        "evaluation": {"speed": 2},
    }
    lines = mistakes_in(settings)
    assert "seed: should be a whole number, got 'long'." in lines
    assert "evaluation.speed: should be true or false, got 2." in lines


def test_a_teacher_s_misspelled_start_is_not_taken_for_a_shape():
    """Nothing of a teacher from random weights is asked for."""
    lines = mistakes_in({"teacher": {"strat": "a"}, "corpus": {"source": "b"}})[1:]
    assert lines == [
        "teacher.start is missing.",
        "teacher.strat is not a key of a recipe. Did you mean 'start'?",
    ]


def test_a_recipe_with_the_other_suffix_is_suggested(tmp_path, monkeypatch):
    """`own.yml` for `own.yaml`, and a name without its suffix."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("teacher: sample\n")
    for wrong in ("own.yml", "own", "./own.yml", str(tmp_path / "own.yml"), "onw.yaml"):
        with pytest.raises(RecipeError, match=r"Did you mean '.*own\.yaml'\?$"):
            recipe_text(wrong)


def test_the_beginning_of_a_packaged_name_lists_those_that_begin_so():
    """Not another family's."""
    with pytest.raises(RecipeError) as caught:
        recipe_text("distilbert")
    assert "'distilbert-base-uncased'" in str(caught.value)
    assert "roberta" not in str(caught.value)


def test_a_recipe_that_is_not_a_file_is_a_mistake_of_the_recipe(tmp_path):
    """A folder, a run's folder, a name too long, one with a NUL: exit code 2, never a bug."""
    (tmp_path / "run").mkdir()
    refused(call("check", tmp_path / "run"), 2, "run is a folder; a recipe is a YAML file")
    (tmp_path / "run/recipe.yaml").touch()
    refused(call("check", tmp_path / "run"), 2, "Did you mean '.*run/recipe.yaml'")
    for odd in ("x" * 5000, f"{tmp_path}/a\0b.yaml", "", "/proc/self/mem/x.yaml"):
        refused(call("run", odd), 2, "There is no recipe")
    refused(call("run", "/proc/self/mem"), 2, "/proc/self/mem cannot be read")


BASE = "teacher: sample\ncorpus: {source: sample}\n"


@pytest.mark.parametrize("text", ["yes", "no", "on", "Off", "010", "08", "1:30", "2024-01-31", "y"])
def test_a_label_or_name_stays_the_text_that_was_written(text):
    """As in YAML 1.2: no truth, octal number, base 60 or date is made of it."""
    recipe = parse_recipe(f"{BASE}report: {{model_name: {text}}}\n")
    assert recipe.report.model_name == text
    task = parse_task("classification", [f"labels=[{text}, other]"])
    assert isinstance(task, ClassificationTask)
    assert task.labels == [text, "other"]
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("seed: true", "seed is true, which is not a number"),
        ("seed: [0, false]", "seed is false, which is not a number"),
        ("seed: yes", "seed: should be a whole number, got 'yes'"),
        ("seed: -1", "seed: .*greater than or equal to 0, got -1"),
        ("seed: 9223372036854775808", "seed: .*less than 9223372036854775808"),
        ("tokens: {sequence_length: true}", "tokens: sequence_length is true, which is not a nu"),
        ("distillation: {optimizer: {learning_rate: true}}", "learning_rate is true, which is n"),
        ("distillation: {max_tokens: 1e6}", "max_tokens: .*got '1e6'. Write it as 1000000"),
        ("distillation: {max_tokens: '1,000'}", "max_tokens: .*got '1,000'. Write it as 1000"),
        (
            "cleaning:\n  near_duplicates:",
            r"line \d, column 3 .*'near_duplicates' has no value; write \{\}",
        ),
        (
            "tokens: null",
            "tokens: a section is a mapping of keys to values; give some or leave it out",
        ),
        ('report: {license: "\\ud83d"}', "report.license contains a lone surrogate"),
        (
            "finetuning: {a: {task: sst-2, data: {train: a, validation: b}}}",
            "finetuning.a.task: there is no task 'sst-2'. Did you mean 'sst2'",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused(section, message):
    """Nothing is silently taken for 0 or 1; whole numbers are shown as they are to be written."""
    with pytest.raises(RecipeError, match=message):
        parse_recipe(f"{BASE}{section}\n")


@pytest.mark.parametrize("text", ["*.txt", "&name", "!x", "@x", "%x", "#1 String"])
def test_an_option_takes_text_that_means_something_else_in_yaml(text):
    """A glob, or MRPC's column `#1 String`."""
    assert parse_recipe(BASE, [f"corpus.source={text}"]).text.source == text


def test_a_character_that_json_escapes_as_a_pair_is_one_character():
    """JSON is YAML, and writes what is beyond 16 bits as two halves."""
    recipe = parse_recipe(BASE + 'report: {model_name: "\\ud83d\\ude00"}\n')
    assert recipe.report.model_name == "\U0001f600"


def test_a_split_may_have_any_name():
    """`train` is a split's name like others, and does not stand for the training data."""
    data = "{train: a.tsv, validation: {train: b.tsv, dev: c.tsv}}"
    recipe = parse_recipe(f"{BASE}finetuning: {{it: {{task: sst2, data: {data}}}}}\n")
    assert recipe.finetuning["it"].data.sources == {
        "train": "a.tsv",
        "validation.train": "b.tsv",
        "validation.dev": "c.tsv",
    }
