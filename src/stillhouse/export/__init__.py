"""Export of a model to the formats of other engines, verified against the model itself."""
