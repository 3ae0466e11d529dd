"""Run folders: paths, manifests and atomic writes."""
