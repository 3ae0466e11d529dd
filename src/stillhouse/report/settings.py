"""Model card settings of a recipe."""

from stillhouse.section import Section


class ReportRecipe(Section):
    """Metadata of the model card."""

    model_name: str | None = None
    """Name in the model card; by default the recipe's."""
    license: str | None = None
    """License in the model card, by its identifier, such as apache-2.0."""
