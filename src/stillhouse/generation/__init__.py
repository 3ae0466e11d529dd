"""Putting a model folder to work: text and features."""

from stillhouse.generation.loaded import Generation, LoadedModel, load

__all__ = ["Generation", "LoadedModel", "load"]
