"""A model folder in the formats of other engines, checked against the model itself."""
