"""Sinks of metrics: each copies the lines of `metrics.jsonl` to another tool, a module each."""
