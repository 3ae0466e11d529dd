"""The page about cleaning: every step, what it left out with samples, what could not be read."""

import re
from pathlib import Path

import pytest
from tests.report.handmade import make_recipe

from stillhouse.recipe import Recipe
from stillhouse.report.cards import cleaning_counts
from stillhouse.report.cleaning import write_cleaning_report
from stillhouse.report.write import write_report
from stillhouse.runs.manifest import Inputs, commit_parts
from stillhouse.runs.paths import RunFolder

STEP = {
    "documents_in": 0, "bytes_in": 0, "documents_out": 0, "bytes_out": 0, "seconds": 0.0,
    "changed": 0, "changes": [],
}  # fmt: skip
FACTS = {
    "read": {
        "documents": 100,
        "bytes": 2_000_000,
        "blank": 3,
        "damaged": {"ends of files": 1},
        "messages": ["a.gz is damaged <b>here</b>"],
    },
    "steps": {
        "length": {
            **STEP, "documents_in": 100, "bytes_in": 2_000_000, "documents_out": 60,
            "bytes_out": 1_500_000, "seconds": 0.5, "reasons": {"under 128 tokens": 40},
            "samples": {"under 128 tokens": [["0", "id-7", "https://a.example/x", "<script>hi"]]},
        },
        "near_duplicates": {
            **STEP, "documents_in": 60, "bytes_in": 1_500_000, "documents_out": 50,
            "bytes_out": 1_000_000, "reasons": {}, "samples": {},
        },
        "personal_data": {
            **STEP, "documents_in": 50, "bytes_in": 1_000_000, "documents_out": 50,
            "bytes_out": 1_000_000, "reasons": {}, "samples": {}, "changed": 7,
            "changes": [["0", "id-9", "mail a@b.example", "mail [email]"]],
        },
    },
    "repeats": {
        "near_duplicates": {
            "removed": 10, "group_sizes": {"3": 5},
            "examples": [{"size": 3, "texts": [["first", "Once upon"], ["copy", "Once up"]]}],
        }
    },
    "text": {
        "documents": 50, "bytes": 1_000_000, "words": 180_000,
        "languages": {"en": 40, "de": 10}, "lengths": {"7": 20, "9": 30},
    },
}  # fmt: skip


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run whose text has been cleaned."""
    run = RunFolder.at(tmp_path / "run")
    run.clean.mkdir(parents=True)
    commit_parts(run.clean, Inputs("clean", {}, {}), FACTS)
    return run


def text_of(page: Path) -> str:
    """What a reader sees, without tags."""
    content = page.read_text(encoding="utf-8").partition("</style>")[2]
    return " ".join(re.sub(r"<[^>]*>", " ", content).split())


def test_the_page_says_what_each_step_did(run):
    """Counts, shares and speeds; samples by reason; groups; lengths, languages, damage."""
    write_cleaning_report(
        Recipe.model_validate(
            {"teacher": "sample", "corpus": {"source": "x"}, "cleaning": {"length": {}}}
        ),
        run,
    )
    text = text_of(run.cleaning_report)
    assert "50 documents of 100 are left (50.0%)" in text
    assert "length 100 40 40.0% 0 2.0 MB 1.5 MB 4.0 MB/s" in text
    assert "near_duplicates 60 10 16.7% 0 1.5 MB 1.0 MB" in text
    assert "personal_data 7 documents id-9 before mail a@b.example id-9 after mail [email]" in text
    assert "length: under 128 tokens 40 id-7 https://a.example/x &lt;script&gt;hi" in text
    assert "3 alike 5 10" in text
    assert "first Once upon copy Once up" in text
    assert "128 256 512" in text  # classes of lengths; the one without documents, too
    assert "en 40 80.0% de 10 20.0%" in text
    assert "3 blank ones left out" in text
    assert "ends of files: 1" in text
    assert "a.gz is damaged &lt;b&gt;here&lt;/b&gt;" in text


def test_the_card_has_the_same_counts(run):
    """What each step left out, without the samples, which are text of others."""
    counts = cleaning_counts(run)
    assert {name: own["left_out"] for name, own in counts["steps"].items()} == {
        "length": 40, "near_duplicates": 10, "personal_data": 0,
    }  # fmt: skip
    assert "samples" not in str(counts)
    assert cleaning_counts(RunFolder.at(run.path / "none")) == {}


def test_the_report_leads_to_the_page(make_run):
    """Where the text was cleaned; elsewhere it says nothing of cleaning."""
    run = make_run({"teacher": 3.0, "student": 3.1, "control": 3.2})
    write_report(make_recipe(), run, [run])
    assert "Cleaned text" not in text_of(run.report)
    run.clean.mkdir(parents=True)
    commit_parts(run.clean, Inputs("clean", {}, {}), FACTS)
    write_report(make_recipe(), run, [run])
    assert "50 of 100 documents are left" in text_of(run.report)
    assert '<a href="cleaning.html">' in run.report.read_text(encoding="utf-8")
