"""Cleans text before it is tokenized: steps that judge one document, deduplication over all."""
