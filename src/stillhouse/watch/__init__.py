"""The live view of a run: its files -> the terminal, or a page in the browser. Loads no torch."""
