"""Energy, emissions and cost of a run, from its manifests: measured, estimated, or unknown."""
