"""Settings of a recipe for energy, emissions and cost."""

from typing import Annotated

from pydantic import Field, PositiveFloat, model_validator

from stillhouse.section import Section


class EnergyRecipe(Section):
    """What energy is worth here. Without any of these, and without counters, it is unknown."""

    watts: PositiveFloat | None = None
    """Power of a device, a GPU or a machine without one, where no counter measures it."""
    kg_per_kwh: PositiveFloat | None = None
    """Emissions of the electricity, in kg of CO2 equivalents per kWh."""
    country: Annotated[str, Field(pattern="^[A-Z]{3}$")] | None = None
    """Instead of `kg_per_kwh` the country's mean, by its ISO code of three letters (extra
    `energy`)."""
    price_per_hour: PositiveFloat | None = None
    """Price of a device for an hour."""
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")] = "USD"
    """Currency of the price."""

    @model_validator(mode="after")
    def _has_one_factor(self) -> "EnergyRecipe":
        if self.kg_per_kwh is not None and self.country is not None:
            raise ValueError("kg_per_kwh and country both give the emissions; leave one out")
        return self
