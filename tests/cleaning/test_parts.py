"""Parts of a text stay apart when it is cleaned, and are found in the cleaned text."""

import json

import pytest

from stillhouse.cleaning.shards import load_plan, plan_shards, save_plan
from stillhouse.data.settings import CorpusRecipe
from stillhouse.pipeline import Pipeline
from stillhouse.recipe_file import parse_recipe
from stillhouse.runs.manifest import facts_of
from stillhouse.runs.paths import RunFolder
from stillhouse.tokens.shards import open_split
from stillhouse.training.progress import QuietReporter

RECIPE = """
teacher: {{family: gpt2, num_layers: 1, hidden_size: 16, num_heads: 2}}
corpus:
  source: {{en: {folder}/en.jsonl, fr: {folder}/fr.jsonl}}
  mixture: {{exponent: 0.5}}
  validation_fraction: 0.2
cleaning: {{length: {{min_tokens: 10}}, workers: 1}}
tokens: {{tokenizer: {{train: byte_bpe, vocabulary_size: 300}}, sequence_length: 16}}
"""
SENTENCES = {
    "en": "The river carries the boats of the village {} down to the harbour.\n",
    "fr": "La rivière emporte les barques du village {} jusque dans le port.\n",
}


@pytest.fixture
def folder(tmp_path):
    """Of each language twelve documents, and a short one."""
    for part, sentence in SENTENCES.items():
        texts = [sentence.format(n) * 5 for n in range(12)] + ["No."]
        rows = [json.dumps({"id": f"{part}-{n}", "text": text}) for n, text in enumerate(texts)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_no_shard_has_files_of_two_parts(folder):
    """Small files of one part share a shard; the plan keeps the part of each."""
    names = [str(folder / "en.jsonl"), str(folder / "fr.jsonl")]
    listed = plan_shards(CorpusRecipe(source=names), 2**24, offline=True)
    assert [(len(group.contents), group.part) for group in listed] == [(2, "")]
    named = CorpusRecipe.model_validate({"source": {"en": names[0], "fr": names[1]}})
    groups = plan_shards(named, 2**24, offline=True)
    assert [(len(group.contents), group.part) for group in groups] == [(1, "en"), (1, "fr")]
    digest = save_plan(folder / "clean", groups)
    assert load_plan(folder / "clean", digest) == groups


@pytest.mark.e2e
def test_the_tokens_of_cleaned_text_have_its_parts(folder):
    """Cleaned, each part has its own documents and none of the other."""
    recipe = parse_recipe(RECIPE.format(folder=folder))
    run = RunFolder.at(folder / "run")
    Pipeline(recipe, run, QuietReporter(), offline=True).run_stages(["clean", "prepare"])
    found = sorted(path.name for path in run.clean.glob("part-*"))
    assert found == ["part-en.00000-00000", "part-fr.00001-00000"]
    parts = facts_of(run.corpus)["parts"]
    for part in SENTENCES:
        splits = parts[part]["splits"]
        assert sum(own["documents"] for own in splits.values()) == 12
    assert sum(open_split(run.tokens, "validation").parts.values()) >= 2
