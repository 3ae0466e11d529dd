"""Cleaning as a whole: what is left, in which order, counted how, and the same whatever happens."""

import bz2
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from stillhouse.cleaning.clean import clean, clean_share
from stillhouse.cleaning.job import Cleaning
from stillhouse.cleaning.settings import CleaningRecipe
from stillhouse.cleaning.tables import read_rows
from stillhouse.data.settings import CorpusRecipe
from stillhouse.errors import DataError, NetworkError, RunError
from stillhouse.runs.manifest import read_manifest, verify

PAGES, ROWS = 3, 9
SENTENCE = "The river ran past the old mill and the people of the town walked along it. "
PAGE = "<html><body><nav>Home News</nav><article>{}</article></body></html>"


def write_text(folder: Path) -> list[str]:
    """Pages, lines and a large file with an exact duplicate; returns the sources."""
    folder.mkdir(exist_ok=True)
    pages = folder / "pages"
    pages.mkdir()
    for n in range(PAGES):
        text = "".join(f"<p>{n} {SENTENCE * 3}</p>" for _ in range(3))
        (pages / f"{n}.html").write_text(PAGE.format(text), encoding="utf-8")
    rows: list[dict[str, Any]] = [
        {"id": f"r{n}", "text": f"Number {n}. {SENTENCE * 4}"} for n in range(ROWS)
    ]
    rows += [{"id": "copy", "text": rows[3]["text"]}, {"id": "short", "text": "Too short."}]
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / "large.jsonl").write_text(lines + "\n", encoding="utf-8")
    return [str(pages), str(folder / "large.jsonl")]


def job_for(
    target: Path, sources: Sequence[str], *, offline: bool = True, **settings: Any
) -> Cleaning:
    steps = {"main_text": {}, "length": {"min_tokens": 20}, "duplicates": {}}
    recipe = CleaningRecipe(**{**steps, "shard_bytes": 1500, "workers": 1, **settings})
    return Cleaning.of(target, CorpusRecipe(source=list(sources)), recipe, offline=offline)


def run(target: Path, sources: Sequence[str], **settings: Any) -> list[str]:
    """Clean; returns what was said."""
    said: list[str] = []
    clean(job_for(target, sources, **settings), said.append)
    return said


def documents(target: Path) -> list[tuple[str, str]]:
    """Ids and texts, in the order in which they are tokenized."""
    files = sorted(target.glob("part-*/documents.parquet"))
    return [(row[0], row[3]) for file in files for row in read_rows(file)]


def fingerprint(target: Path) -> str:
    manifest = read_manifest(target)
    assert manifest is not None
    verify(target)
    return manifest.fingerprint


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[str]:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory, sources) -> Path:
    target = tmp_path_factory.mktemp("run") / "clean"
    run(target, sources)
    return target


def test_what_is_left_keeps_its_order(cleaned):
    """Pages give their main text alone; the first of equals stays, in the order of the sources."""
    found = documents(cleaned)
    assert [id for id, _ in found] == [
        *(f"{n}.html" for n in range(PAGES)),
        *(f"r{n}" for n in range(ROWS)),
    ]
    assert all("Home" not in text for _, text in found)
    assert found[PAGES][1] == f"Number 0. {SENTENCE * 4}"


def test_pages_without_a_step_that_extracts_give_their_visible_text(tmp_path, sources):
    """The steps that read the text have some to read."""
    run(tmp_path / "clean", sources[:1], main_text=None)
    texts = [text for _, text in documents(tmp_path / "clean")]
    assert len(texts) == PAGES
    assert all(SENTENCE.strip() in text and "<p>" not in text for text in texts)


def test_every_document_is_accounted_for(cleaned):
    """Each step's documents are those that the one before it has kept; reasons add up."""
    manifest = read_manifest(cleaned)
    assert manifest is not None
    facts = manifest.facts
    number = facts["read"]["documents"]
    assert number == PAGES + ROWS + 2
    for own in facts["steps"].values():
        assert own["documents_in"] == number
        assert own["documents_in"] - own["documents_out"] == sum(own["reasons"].values())
        number = own["documents_out"]
    assert number == facts["text"]["documents"] == len(documents(cleaned))
    assert facts["steps"]["length"]["reasons"] == {"under 20 tokens": 1}
    assert facts["steps"]["length"]["samples"]["under 20 tokens"][0][1:] == [
        "short", "", "Too short.",
    ]  # fmt: skip
    assert facts["repeats"]["duplicates"]["group_sizes"] == {"2": 1}
    assert [text[0] for text in facts["repeats"]["duplicates"]["examples"][0]["texts"]] == [
        "r3", "copy",
    ]  # fmt: skip
    assert facts["text"]["bytes"] == sum(len(text.encode()) for _, text in documents(cleaned))


def test_nothing_but_the_text_stays(cleaned):
    """Pieces, signatures and notes are removed."""
    assert {path.name.partition("-")[0] for path in cleaned.iterdir()} == {"manifest.json", "part"}
    assert len(list(cleaned.glob("part-*"))) > 3  # the pages and the large file are in shards


@pytest.mark.e2e
def test_the_number_of_processes_changes_nothing(tmp_path, sources, cleaned):
    """Not a byte."""
    run(tmp_path / "clean", sources, workers=3)
    assert fingerprint(tmp_path / "clean") == fingerprint(cleaned)


@pytest.mark.e2e
def test_two_workers_of_ray_give_the_same(tmp_path, sources, cleaned, monkeypatch):
    """Not a byte differs."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    run(tmp_path / "clean", sources, workers=2, executor="ray")
    assert fingerprint(tmp_path / "clean") == fingerprint(cleaned)


def test_shares_of_several_jobs_make_the_same(tmp_path, sources, cleaned):
    """Each job cleans its share, in any order; the command without a share finishes."""
    target = tmp_path / "clean"
    for share in (2, 0, 1):
        clean_share(job_for(target, sources), share, 3, lambda line: None)
    said = run(target, sources)
    assert not any("cleaned" in line for line in said)
    assert fingerprint(target) == fingerprint(cleaned)
    said = []
    clean_share(job_for(target, sources), 0, 3, said.append)
    assert said == ["clean is up to date"]


def test_slurm_gets_a_script_and_its_jobs_are_required(tmp_path, sources, cleaned):
    """Without them the run stops and names the script; after them it continues."""
    target = tmp_path / "a run" / "clean"
    target.parent.mkdir()
    with pytest.raises(RunError, match=r"part.*must be cleaned by Slurm first: submit `sbatch"):
        run(target, sources, executor="slurm")
    script = (target.parent / "clean.sbatch").read_text()
    number = len(job_for(target, sources).groups)
    assert f"#SBATCH --array=0-{number - 1}%1\n" in script
    assert f"--run-dir '{target.parent}'" in script
    assert f'--shard "$SLURM_ARRAY_TASK_ID/{number}" --workers "$SLURM_CPUS_PER_TASK"' in script
    for share in range(number):
        clean_share(job_for(target, sources, executor="local"), share, number, lambda line: None)
    run(target, sources, executor="slurm")
    assert fingerprint(target) == fingerprint(cleaned)


def test_only_what_changed_is_cleaned_again(tmp_path):
    """A file that is added makes one shard; the folder of before moves to replaced/."""
    sources = write_text(tmp_path / "text")
    run(tmp_path / "clean", sources)
    (tmp_path / "text/pages/7.html").write_text(PAGE.format(f"<p>{SENTENCE * 9}</p>"))
    assert any("cleaned" in line for line in run(tmp_path / "clean", sources))
    assert documents(tmp_path / "clean")[PAGES][0] == "7.html"
    assert len(list((tmp_path / "replaced").iterdir())) == 1


def test_what_is_done_with_the_text_later_does_not_clean_it_again(tmp_path, sources):
    """The share of held-out documents, which only the next stage looks at."""
    run(tmp_path / "clean", sources)
    job = job_for(tmp_path / "clean", sources)
    corpus = CorpusRecipe(source=list(sources), validation_fraction=0.5)
    assert Cleaning.of(job.folder, corpus, job.recipe, offline=True).inputs == job.inputs


def test_the_result_is_said(tmp_path, sources):
    said = run(tmp_path / "clean", sources)
    assert said[-1] == (
        "12 of 14 documents are left; left out by length 1 (under 20 tokens), duplicates 1 "
        "(repeats an earlier document)"
    )


def test_what_is_changed_is_shown(tmp_path):
    """Up to three documents of each step, at their first change; of a page, its visible text."""
    page = PAGE.format(f"<p>{SENTENCE * 9}Write to me@home.example.</p>")
    (tmp_path / "a.html").write_text(page)
    target = tmp_path / "run" / "clean"
    run(target, [str(tmp_path / "a.html")], personal_data={}, duplicates=None)
    manifest = read_manifest(target)
    assert manifest is not None
    text, masks = (manifest.facts["steps"][name] for name in ("main_text", "personal_data"))
    assert (text["changed"], masks["changed"]) == (1, 1)
    assert text["changes"][0][1] == "a.html"
    assert "the people of the town" in text["changes"][0][2]
    assert "<p>" not in text["changes"][0][2]
    before, after = masks["changes"][0][2:]
    assert before.endswith("Write to me@home.example.")
    assert "me@home" not in after
    assert after.startswith(before[:60])


def test_a_part_of_which_nothing_is_left_is_named(tmp_path, sources):
    corpus = CorpusRecipe(source={"en": sources[0], "de": sources[1]})
    recipe = CleaningRecipe.model_validate({"urls": {"block": ["x"]}, "length": {"min_tokens": 90}})
    job = Cleaning.of(tmp_path / "clean", corpus, recipe, offline=True)
    with pytest.raises(
        DataError, match=r"the part de: of 11 documents; left out by length 11 \(un"
    ):
        clean(job, lambda line: None)


def test_a_dataset_of_the_hub_is_streamed(tmp_path, sources):
    """It is divided like a large file; what is left is what is left of its rows in a file."""
    run(tmp_path / "file", sources[1:])
    lines = Path(sources[1]).read_text().splitlines()
    dataset = Dataset.from_list([json.loads(line) for line in lines])
    (tmp_path / "dataset").mkdir()
    dataset.to_parquet(tmp_path / "dataset" / "train-00000-of-00001.parquet")
    run(tmp_path / "hub", [f"hf://{tmp_path / 'dataset'}"], offline=False)
    assert documents(tmp_path / "hub") == documents(tmp_path / "file")
    assert len(list((tmp_path / "hub").glob("part-*"))) > 1
    with pytest.raises(NetworkError, match=r"hf://.*--offline forbids"):
        run(tmp_path / "other", [f"hf://{tmp_path / 'dataset'}"])


def test_an_interrupted_run_goes_on(tmp_path, sources, cleaned, monkeypatch):
    """Shards that are clean are not cleaned again."""
    target = tmp_path / "clean"
    monkeypatch.setattr("stillhouse.cleaning.clean.find_duplicates", _stop)
    with pytest.raises(KeyboardInterrupt):
        run(target, sources)
    monkeypatch.undo()
    assert not any("cleaned" in line for line in run(target, sources))
    assert fingerprint(target) == fingerprint(cleaned)


def _stop(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_what_cannot_be_read_is_counted(tmp_path):
    """One damaged record, or the rest of a damaged file, and nothing else is left out."""
    rows = [json.dumps({"id": f"r{n}", "text": f"{n} {SENTENCE * 2}"}) for n in range(3)]
    lines = [rows[0], "{not json", rows[1], '{"text": "a \\u0000 b"}', '{"body": 1}', "", rows[2]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n' + rows[0].encode() + b"\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\0cut")
    (tmp_path / "bomb.jsonl.bz2").write_bytes(bz2.compress(b" " * 2**27))
    (tmp_path / "empty.html").write_bytes(b"")
    target = tmp_path / "run" / "clean"
    run(target, [str(tmp_path)], duplicates=None)
    assert [id for id, _ in documents(target)] == ["r0", "r0", "r1", "r2"]
    manifest = read_manifest(target)
    assert manifest is not None
    read = manifest.facts["read"]
    assert read["damaged"] == {"ends of files": 2, "records": 4}
    assert read["blank"] == 2
    assert "bomb.jsonl.bz2 is a decompression bomb" in read["messages"][0]
    assert "cut.jsonl.gz is damaged" in read["messages"][1]
    assert sum("rows.jsonl" in message for message in read["messages"]) == 3
    assert "latin.jsonl row 1" in " ".join(read["messages"])


def test_rejected_documents_are_kept_where_asked(tmp_path, sources):
    """With the step and the reason, those of deduplication too."""
    target = tmp_path / "clean"
    run(target, sources, keep_rejected=True)
    files = sorted(target.glob("part-*/rejected.parquet"))
    rows = [row for file in files for row in read_rows(file)]
    assert {(step, reason, id) for step, reason, id, _, _ in rows} == {
        ("length", "under 20 tokens", "short"),
        ("duplicates", "repeats an earlier document", "copy"),
    }


def test_cleaning_everything_away_is_an_error(tmp_path, sources):
    """Which says what each step left out."""
    with pytest.raises(DataError, match=r"nothing of the text: of 14 .*length 14 \(under 10000 t"):
        run(tmp_path / "clean", sources, length={"min_tokens": 10_000})
