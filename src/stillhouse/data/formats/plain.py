"""Plain text, which includes markup that people write by hand."""

from stillhouse.data.formats import Format
from stillhouse.data.text import read_blocks

FORMATS = (
    Format(
        "text",
        (".txt", ".text", ".md", ".markdown", ".rst", ".py"),
        read_text=read_blocks,
        documents="text: one document per file, line or block (`corpus.documents`)",
        rows="named entities: CoNLL columns (with or without tags for `predict`); otherwise, where "
        "only a text is needed (`predict`, unlabeled data, texts for embeddings), one text per "
        "line",
    ),
)
