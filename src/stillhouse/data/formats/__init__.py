"""File formats, one module each: its suffixes, and how its text or records are read."""
