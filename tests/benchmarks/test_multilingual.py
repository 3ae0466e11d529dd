"""Mixtures over languages: the text that is cut from the novels, and the table of the results."""

import gzip
import json

from benchmarks.multilingual import LANGUAGES, recipe_of, write_novels
from docs.multilingual_results import NOTHING, table_of

from stillhouse.units import TIMES


def result(exponent: float) -> dict:
    own = {"tokens": 68_058, "repeats": 1.716, "share": 0.149, "tokens_per_word": 2.18}
    bits = {"teacher": 3.304, "student": 3.277}
    return {"exponent": exponent, "languages": {"en": {**own, "bits_per_byte": bits}, "fr": {
        **own, "bits_per_byte": {**bits, "control": 3.25}}}}  # fmt: skip


def test_the_table_has_a_row_for_each_language():
    """An exponent is named once; a model that was not trained has no number."""
    lines = table_of([result(1.0), result(0.7)]).splitlines()
    assert len(lines) == 2 + 4
    assert lines[4] == f"| 0.7 | en | 68,058 | 1.72{TIMES} | 14.9% | 2.18 | 3.304 | 3.277 |  |"
    assert lines[5].startswith("|  | fr |")
    assert lines[5].endswith("| 3.250 |")
    assert table_of([]) == NOTHING


def test_the_beginning_of_each_novel_is_kept_once(tmp_path):
    """Files that are there stay as they are, since a run depends on their times."""
    for language in LANGUAGES:
        with gzip.open(tmp_path / f"{language}.jsonl.gz", "wt") as lines:
            lines.writelines(json.dumps({"id": str(n), "text": "x" * 50}) + "\n" for n in range(3))
    write_novels(tmp_path, tmp_path / "cut", 0.5)
    write_novels(tmp_path, tmp_path / "cut", 0.1)
    rows = [json.loads(line) for line in (tmp_path / "cut" / "fr.jsonl").read_text().splitlines()]
    assert [len(row["text"]) for row in rows] == [25, 25, 25]


def test_the_recipe_is_valid_for_each_exponent():
    recipe = recipe_of(0.3, 1, ["distillation.control=none"])
    assert recipe.text.mixture is not None
    assert (recipe.text.mixture.exponent, recipe.seeds) == (0.3, [1])
