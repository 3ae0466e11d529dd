"""The license of a model card: the recipe's, or that of the model it was made from."""

from stillhouse.errors import RecipeError
from stillhouse.finetuning.settings import MODELS_OF_A_RUN
from stillhouse.models.license import OTHER, License, license_of
from stillhouse.recipe import Recipe


def card_license(recipe: Recipe, model: str | None) -> License | None:
    """The license of a model made from `model`, a folder, file or hub name."""
    if recipe.report.license is not None:
        return License(recipe.report.license)
    return None if model is None else license_of(model)


def check_license(recipe: Recipe) -> None:
    """Refuse a license that one of the models behind the run's does not allow.

    Raises:
        RecipeError: it names the model, its license and what to set.
    """
    stated = recipe.report.license
    if stated in (None, OTHER):
        return
    for model in _models_behind(recipe):
        own = license_of(model)
        if own is not None and not own.is_permissive and own.identifier != stated:
            raise RecipeError(
                f"report.license is {stated}, but {model} is under {own.identifier}, which binds "
                f"models made from it. Set report.license to {own.identifier}, or to {OTHER} by "
                "agreement with its owner."
            )


def _models_behind(recipe: Recipe) -> list[str]:
    """Models from elsewhere that the run's models start from or learn from."""
    found = [recipe.named_model]
    for settings in recipe.finetuning.values():
        made = {*MODELS_OF_A_RUN, *settings.models}
        for own in settings.models.values():
            found += [name for name in (own.start, own.teacher) if name not in made]
    return [name for name in dict.fromkeys(found) if name is not None]
