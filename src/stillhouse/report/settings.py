"""Model card settings of a recipe."""

from stillhouse.section import Section


class ReportRecipe(Section):
    """Metadata of the model card."""

    model_name: str | None = None
    """Name in the model card; by default the recipe's."""
    license: str | None = None
    """License in the model card, by its identifier, such as apache-2.0; by default that of the
    model it was made from. If that one binds models made from it, as llama3.2 does, no other is
    accepted but `other`, which stands for an agreement with its owner."""
