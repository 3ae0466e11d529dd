"""Sources of text and rows, one module each: what `corpus.source` and a task's data can name."""
