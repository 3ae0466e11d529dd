"""The generation engine: continuous batching over a key/value cache."""
