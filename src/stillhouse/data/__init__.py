"""Readers of text and rows, for the corpus and for tasks, by source and by file format."""
