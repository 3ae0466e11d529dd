"""Putting a model folder to work: text, features, and the answers of a task."""

from stillhouse.generation.loaded import Generation, LoadedModel, load, load_for_task

__all__ = ["Generation", "LoadedModel", "load", "load_for_task"]
