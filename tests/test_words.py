"""The old words of docs/contributing/renamed.md stay out of code, tests, pages and --help."""

import re

import pytest
import typer
from docs.words import NAMES, PHRASES, ROOT, WORDS, Source, old_words, renamed_table, sources

from stillhouse.cli import app

SOURCES = list(sources())
FOLDERS = ("training", "tasks", "inference", "serving", "finetuning", "tokens", "runs", "student")


@pytest.mark.parametrize("source", SOURCES, ids=[source.path for source in SOURCES])
def test_a_file_uses_no_old_word(source):
    """`python docs/words.py PATH` shows each place."""
    assert old_words(source) == set()


@pytest.mark.parametrize("word", WORDS, ids=[word.key for word in WORDS])
def test_each_old_word_is_found_where_it_is_planted(word):
    paths = ["README.md", *(f"src/stillhouse/{folder}/module.py" for folder in FOLDERS)]
    path = next(path for path in paths if re.search(word.within, path) and _reads(word, path))
    for planted in word.planted:
        assert word.search(Source(path, planted)), planted


def _reads(word, path: str) -> bool:
    """Names are found in Python's code, phrases in any text."""
    return word in PHRASES or path.endswith(".py")


def test_a_phrase_is_found_across_lines_of_a_docstring_a_comment_and_a_message():
    (word,) = (word for word in PHRASES if word.key == "held against")
    for text in (
        '"""What is held\n    against."""',
        "# is held\n# against",
        '("is held "\n "against")',
        "// is held\n  // against",
    ):
        assert word.search(Source("src/module.py", text)), text


def test_a_name_is_found_in_code_and_in_backticks_only():
    (word,) = (word for word in NAMES if word.key == "Encoded")
    assert word.search(Source("src/module.py", "x = Encoded(1)"))
    assert word.search(Source("docs/page.md", "an `Encoded` example"))
    assert not word.search(Source("src/module.py", '"""Encoded text."""  # Encoded'))


@pytest.mark.e2e
def test_help_uses_no_old_word():
    group = typer.main.get_command(app)
    lines = []
    for name, command in group.commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        context = typer.Context(command, info_name=name)
        records = [each.get_help_record(context) for each in command.get_params(context)]
        lines += [command.help or "", *(" ".join(record) for record in records if record)]
    assert old_words(Source("docs/reference/cli.md", "\n".join(lines))) == set()


def test_the_page_lists_every_word():
    page = (ROOT / "docs" / "contributing" / "renamed.md").read_text(encoding="utf-8")
    assert renamed_table(NAMES) in page
    assert renamed_table(PHRASES) in page
