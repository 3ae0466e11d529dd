"""Plain text, which includes markup that people write by hand."""

from stillhouse.data.formats import Format
from stillhouse.data.text import read_blocks

TEXT = Format("text", (".txt", ".text", ".md", ".markdown", ".rst", ".py"), read_text=read_blocks)
FORMATS = (TEXT,)
