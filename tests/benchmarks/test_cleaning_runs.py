"""Whole runs of cleaning: the text that is generated, what a run needs, and the tables."""

import subprocess

import pytest
from benchmarks.cleaning_runs import documents, run, sentences_of
from docs.cleaning_results import projection_of, runs_of, scaling_of

SENTENCES = [f"Sentence number {number} has as many words as this one." for number in range(500)]


def test_documents_are_of_the_size_that_is_asked_for_and_do_not_repeat():
    found = list(documents(SENTENCES, 200_000))
    assert 200_000 <= sum(len(text.encode()) for text in found) < 204_000
    assert len({*found}) == len(found)
    assert found == list(documents(SENTENCES, 200_000))
    assert all(paragraph.count(".") <= 5 for text in found for paragraph in text.split("\n\n"))


def test_sentences_are_whole_and_without_line_breaks():
    book = "It was late, and the road\nwas longer than they remembered. No. But they walked."
    assert sentences_of([book, book]) == [
        "It was late, and the road was longer than they remembered."
    ]


def test_a_run_that_fails_is_no_figure():
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(["clean", "no-such-recipe.yaml"])
    assert "no-such-recipe.yaml" in error.value.output


def test_tables_of_the_guide():
    """A document takes 3 ms and another one while documents are compared; a page 0.1 s."""
    memory = {"peak_bytes": 5e8, "peak_bytes_of_one_process": 2e8}
    clean = {
        "wall_seconds": 50.0,
        "cpu_seconds": 80.0,
        "finding_seconds": {"duplicates": 4.0, "near_duplicates": 16.0},
        "text": {"documents": 20_000, "bytes": 100e6},
        **memory,
    }
    runs = {"sizes": {"100": {"clean": clean, "prepare": {"wall_seconds": 10.0, **memory}}}}
    scaling = {"megabytes": 50, "ratio": 1.9, "wall_seconds": {"1": [19.0], "2": [10.0]}}
    assert "| 100 MB | 20,000 | `clean` | 50 s | 2.0 | 500 MB | 200 MB |" in runs_of(runs)
    assert "|  |  | `prepare` | 10 s | 10.0 |" in runs_of(runs)
    assert "1.90 times as fast as one (19 s and 10 s, medians of 1)" in scaling_of(scaling)
    pages = {"pages": 10, "bytes": 1e6}
    steps = {"web_pages": pages, "steps": {"main_text": {"web pages": {"stillhouse": 1.0}}}}
    row = projection_of(runs, steps).splitlines()[2]
    assert row.split(" | ")[1:] == ["222", "6", "2.2", "5.8 hours", "1.0 GB |"]
