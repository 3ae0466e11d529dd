"""Putting a model folder to work: text, features, and the answers of a task."""

from stillhouse.generation.loaded import LoadedModel, load, load_for_task
from stillhouse.generation.settings import Generation

__all__ = ["Generation", "LoadedModel", "load", "load_for_task"]
