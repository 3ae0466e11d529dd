"""The one reader of text and rows, for the corpus and for tasks alike."""
