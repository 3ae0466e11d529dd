"""The benchmark of near duplicates: planted copies, its rates, and the tables of its results."""

import gzip
import json
import random

import pytest
from benchmarks.planted import chapters_of, edited, passages_of
from docs.deduplication_results import tables_of

from benchmarks import deduplication


def test_words_are_edited_at_the_given_rate():
    """Of a thousand words a fifth: replaced, removed or followed by another, each as often."""
    words = [f"w{number}" for number in range(1000)]
    found = edited(" ".join(words), 0.2, ["new"], random.Random(0)).split()
    removed = len(set(words) - set(found))
    assert removed == pytest.approx(1000 * 0.2 * 2 / 3, rel=0.2)
    assert found.count("new") == pytest.approx(1000 * 0.2 * 2 / 3, rel=0.2)
    assert edited(" ".join(words), 0, ["new"], random.Random(0)).split() == words


def test_chapters_and_passages_are_parts_of_a_book():
    text = "word " * 600
    book = f"Contents\nChapter I\nChapter II\n{text}\nCHAPTER II\n{text}end\n"
    assert [len(chapter.split()) for chapter in chapters_of(book)] == [600, 601]
    assert passages_of("a b c d e", 2) == ["a b", "c d"]


def test_rates_count_pairs_within_clusters():
    """Of originals 0 to 3, documents 4 and 5 are copies of 0 and 1. One is found, one is not, and
    one pair is of different documents."""
    found = deduplication.rates_of([[0, 4], [2, 3], [1], [5]], 4, 2)
    assert found == {"recall": 0.5, "precision": 0.5, "pairs": 2}
    assert deduplication.rates_of([[0], [4]], 4, 2)["precision"] is None


@pytest.mark.e2e
def test_benchmark_measures_all_engines_on_the_same_documents(monkeypatch, tmp_path):
    """On three books of random words: every copy at 5 % is found, nothing else is."""
    draw = random.Random(0)
    books = tmp_path / "books"
    books.mkdir()
    with gzip.open(books / "en.jsonl.gz", "wt", encoding="utf-8") as file:
        for _ in range(3):
            chapters = (" ".join(f"w{draw.randrange(5000)}" for _ in range(1500)) for _ in range(4))
            text = "".join(f"\nChapter {number}\n{each}" for number, each in enumerate(chapters))
            file.write(json.dumps({"text": text}) + "\n")
    output = tmp_path / "result.json"
    arguments = ["--documents", 12, "--copies", 6, "--repeats", 1, "--data", tmp_path]
    monkeypatch.setattr("sys.argv", ["deduplication", *map(str, [*arguments, "--output", output])])
    deduplication.main()
    result = json.loads(output.read_text())
    for own in result["quality"].values():
        assert own["rates"]["default"]["0.05"] == {"recall": 1, "precision": 1, "pairs": 6}
    engines = {"default", "settings of datatrove", "datatrove", "plain Python"}
    assert set(result["speed"]["signing"]) == set(result["speed"]["finding"]) == engines
    table = tables_of(result)
    assert "| 12 chapters, 6 copies | default (0.4, 3 words) | 1.000, 1.000 |" in table
    assert "| engine | signing, MB/s | finding, MB/s |" in table
