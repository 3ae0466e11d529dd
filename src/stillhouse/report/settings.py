"""Model card settings of a recipe."""

from stillhouse.section import Section


class ReportRecipe(Section):
    """What the model card says of name and licence."""

    model_name: str | None = None
    license: str | None = None
