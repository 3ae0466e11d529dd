"""Whether the models of a task fit it and each other, from their configurations alone."""

from collections.abc import Mapping

from transformers import PretrainedConfig

from stillhouse.errors import RecipeError
from stillhouse.families.base import with_num_layers
from stillhouse.families.layer_map import layers_from
from stillhouse.finetuning.objective import check_terms
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.objectives.relation_term import check_relation
from stillhouse.tasks.registry import check_length, make_task
from stillhouse.tasks.settings import ContinuationTask, LastWordTask


def resolve_configs(
    name: str,
    recipe: FinetuningRecipe,
    starts: Mapping[str, PretrainedConfig],
    teachers: Mapping[str, PretrainedConfig],
) -> dict[str, PretrainedConfig]:
    """The configuration of each model of the task `name`.

    Args:
        starts: Of what each model starts from, by the model's name.
        teachers: Of teachers that are no models of the task, by name.

    Raises:
        RecipeError: a layer map, a length or a term that cannot be.
    """
    found: dict[str, PretrainedConfig] = {}
    if isinstance(recipe.task, LastWordTask | ContinuationTask):
        raise RecipeError(
            f"finetuning.{name}.task is {recipe.task.kind}, which is asked of a model as it is "
            "(`stillhouse score`). To train one on text, give the text as `corpus`."
        )
    for model, settings in recipe.models.items():
        check_length(recipe.task, starts[model], f"the start of {model}")
        found[model] = starts[model]
        layer_map = layer_map_of(name, recipe, model, starts[model])
        if layer_map is not None:
            found[model] = with_num_layers(starts[model], len(layer_map))
        if settings.teacher is not None:
            check_terms(make_task(recipe.task), recipe.losses)
            teacher = teachers.get(settings.teacher) or found[settings.teacher]
            check_relation(recipe.losses.relation, found[model], teacher)
            check_length(recipe.task, teacher, f"the teacher of {model}")
            _check_vectors(recipe, model, found[model].hidden_size, teacher.hidden_size)
    return found


def _check_vectors(recipe: FinetuningRecipe, model: str, ours: int, theirs: int) -> None:
    """Refuse terms that hold vectors of two sizes against each other."""
    terms = {"vector_cosine", "vector_mse"} & set(recipe.losses.active())
    if ours != theirs and terms:
        raise RecipeError(
            f"losses.{min(terms)} compares vectors of one size, but those of {model} have {ours} "
            f"numbers and its teacher's {theirs}. Take similarity."
        )


def layer_map_of(
    name: str, recipe: FinetuningRecipe, model: str, start: PretrainedConfig
) -> list[int] | None:
    """The layers that a model takes from its start, or None where it takes them all.

    Raises:
        RecipeError: a layer that the start does not have.
    """
    wanted = recipe.models[model].layer_map
    if wanted is None:
        return None
    key = f"finetuning.{name}.models.{model}.layer_map"
    return layers_from(wanted, start.num_hidden_layers, key=key)
