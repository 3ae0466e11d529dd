"""Parts of a text: prepared one after the other, split, counted and drawn each on its own."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stillhouse.corpus.parts import plan_parts, text_of_training, wanted_bytes
from stillhouse.corpus.prepare import prepare, prepare_inputs, text_to_tokenize
from stillhouse.data.settings import CorpusRecipe, MixtureRecipe
from stillhouse.errors import DataError, RecipeError
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import parse_recipe
from stillhouse.runs.manifest import facts_of
from stillhouse.runs.paths import RunFolder, part_folder_name
from stillhouse.tokens.shards import open_split
from stillhouse.tokens.tokenizer import load_tokenizer

SENTENCES = {
    "en": "The river carries the boats of the village {} down to the harbour.\n",
    "fr": "La rivière emporte les barques du village {} jusque dans le port.\n",
}


@pytest.fixture
def sources(tmp_path) -> dict[str, str]:
    """Forty English documents, and three French ones, too few to hold out a fraction of 0.02."""
    found = {}
    for part, number in {"en": 40, "fr": 3}.items():
        lines = [
            {"id": f"{part}-{n}", "text": SENTENCES[part].format(n) * (8 + n)}
            for n in range(number)
        ]
        file = tmp_path / f"{part}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        found[part] = str(file)
    return found


def recipe_for(source: object, *, size: int = 300, **corpus: object) -> Recipe:
    return Recipe.model_validate(
        {
            "teacher": "any",
            "corpus": {"source": source, "validation_fraction": 0.02, **corpus},
            "tokens": {"tokenizer": {"train": "byte_bpe", "vocabulary_size": size}},
        }
    )


def prepared(recipe: Recipe, folder: Path) -> tuple[RunFolder, list[str]]:
    run, said = RunFolder.at(folder), []
    prepare(recipe, run, teacher_tokenizer=None, progress=said.append)
    return run, said


def test_each_part_is_stored_counted_and_held_out(sources, tmp_path):
    """The shards hold the parts in order, each in both splits; the manifests and the log state
    their sizes and what a mixture draws."""
    recipe = recipe_for(sources, mixture={"exponent": 0.5})
    run, said = prepared(recipe, tmp_path / "run")
    tokenizer = load_tokenizer(run.tokens / "tokenizer")
    facts = facts_of(run.tokens)
    for split in ("train", "validation"):
        tokens = open_split(run.tokens, split)
        starts = tokens.document_starts.astype(int).tolist()
        assert list(tokens.parts) == ["en", "fr"]
        bounds = tokens.part_bounds.tolist()
        for (part, number), first in zip(tokens.parts.items(), bounds[:-1], strict=True):
            own = facts["splits"][split]["parts"][part]
            assert own["documents"] == number > 0
            assert own["tokens"] == starts[first + number] - starts[first]
            text = tokenizer.decode(tokens.read(starts[first], starts[first + number]).tolist())
            assert SENTENCES[part].split("{}")[0] in text
            assert all(each not in text for name, each in SENTENCES.items() if name != part)
        total = sum(own["tokens"] for own in facts["splits"][split]["parts"].values())
        assert total == facts["splits"][split]["tokens"] == tokens.num_tokens
    corpus = facts_of(run.corpus)["parts"]
    drawn = facts["parts"]
    ratio = drawn["en"]["tokens"] / drawn["fr"]["tokens"]
    assert drawn["en"]["repeats"] == corpus["en"]["repeats"] == 1
    assert corpus["fr"]["repeats"] == pytest.approx(ratio**0.5)
    assert corpus["en"]["share"] + corpus["fr"]["share"] == pytest.approx(1)
    assert "blocks of" in corpus["fr"]["splitting"]["note"] or "held out" in said[-1]
    (line,) = [line for line in said if line.startswith("fr:") and "epoch" in line]
    assert f"{drawn['fr']['tokens']:,} tokens" in line
    assert f"{corpus['fr']['share']:.1%}" in line
    listed = json.loads((run.corpus / "sources.json").read_text())
    assert [file["part"] for file in listed] == ["en", "fr"]


def test_a_text_without_parts_is_described_as_before(sources):
    """No key of a mixture reaches the inputs of a stage, so that finished runs stay up to date."""
    recipe = recipe_for([*sources.values()])
    inputs = prepare_inputs(recipe, RunFolder.at(Path("run")), teacher_tokenizer=None)
    assert inputs.settings["corpus"] == {
        "source": [*sources.values()],
        "documents": "per_file",
        "text_field": "text",
        "validation_fraction": 0.02,
    }


def test_parts_hold_the_text_of_a_list_of_their_files(sources, tmp_path):
    """Whole documents in the same order: parts change where sequences end, not the tokens."""
    named, _ = prepared(recipe_for(sources, validation_fraction=0.4), tmp_path / "named")
    whole = recipe_for([*sources.values()], validation_fraction=0.4)
    listed, _ = prepared(whole, tmp_path / "listed")
    for split in ("train", "validation"):
        one, other = (open_split(run.tokens, split) for run in (named, listed))
        assert one.read(0, one.num_tokens).tolist() == other.read(0, other.num_tokens).tolist()
        assert len(one.parts) == 2
        assert other.parts == {}


def test_the_tokenizer_is_trained_on_what_is_drawn(sources, tmp_path):
    """At exponent 0 a small language has more entries than at 1."""
    found = {}
    for exponent in (0, 1):
        recipe = recipe_for(sources, size=330, mixture={"exponent": exponent})
        run, _ = prepared(recipe, tmp_path / str(exponent))
        tokenizer = load_tokenizer(run.tokens / "tokenizer")
        found[exponent] = {
            part: len(tokenizer(text.format(1))["input_ids"]) for part, text in SENTENCES.items()
        }
    assert found[0]["fr"] < found[1]["fr"]
    assert found[0]["en"] >= found[1]["en"]


@pytest.mark.parametrize("most_bytes", [3_000, 10**9])
def test_the_text_of_a_tokenizer_has_the_shares_of_the_mixture(sources, most_bytes):
    """By bytes, within a word; the small part is repeated, the large one read once at most."""
    corpus = CorpusRecipe.model_validate({"source": sources, "validation_fraction": 0.02})
    parts = plan_parts(corpus, offline=True)
    mixture = MixtureRecipe(exponent=0)
    size = Counter()
    for chunk in text_of_training(parts, mixture, most_bytes):
        size[chunk.document_id[:2]] += len(chunk.text.encode())
    sizes = {
        part.name: sum(len(chunk.text.encode()) for chunk in part.training_chunks())
        for part in parts
    }
    wanted = min(sizes["en"], most_bytes / 2)
    assert size["en"] == pytest.approx(wanted, abs=20)
    assert size["fr"] == pytest.approx(wanted, abs=20)


def test_text_is_drawn_up_to_a_limit():
    sizes = {"en": 800, "fr": 200}
    assert wanted_bytes(sizes, None, 10_000) == sizes
    assert wanted_bytes(sizes, None, 500) == {"en": 400, "fr": 100}
    assert wanted_bytes(sizes, MixtureRecipe(exponent=0), 10_000) == {"en": 800, "fr": 800}


def test_the_cleaned_text_keeps_its_parts(sources):
    """The folders of a part are found by its name, and those of no other."""
    recipe = recipe_for({"a": "x", "a-b": "y"})
    recipe = recipe.model_copy(update={"cleaning": object()})
    text = text_to_tokenize(recipe, RunFolder.at(Path("/runs/[1]")))
    assert isinstance(text.source, dict)
    for part in ("a", "a-b"):
        folder = Path("/runs/[1]/clean", part_folder_name(part, "00000-00001"))
        matching = [
            name
            for name, pattern in text.source.items()
            if (folder / "documents.parquet").match(str(pattern))
        ]
        assert matching == [part]


def test_a_part_without_text_is_named(sources, tmp_path):
    (tmp_path / "empty.jsonl").write_text(json.dumps({"text": "  "}) + "\n")
    recipe = recipe_for({**sources, "de": str(tmp_path / "empty.jsonl")})
    with pytest.raises(DataError, match=r"corpus\.source\.de .*empty\.jsonl holds no text"):
        prepared(recipe, tmp_path / "run")


def test_a_file_belongs_to_one_part(sources, tmp_path):
    recipe = recipe_for({**sources, "de": sources["fr"]})
    with pytest.raises(DataError, match=r"fr\.jsonl is in two parts of corpus\.source, fr and de"):
        prepared(recipe, tmp_path / "run")


def test_weights_that_drown_the_text_are_refused(sources, tmp_path):
    """An epoch of a million times the text is a mistake; nothing is written."""
    weights = {"en": 1, "fr": 1e9}
    with pytest.raises(DataError, match=r"repeats the part fr [\d,]+ times .* sizes: en [\d,]+"):
        prepared(recipe_for(sources, mixture={"weights": weights}), tmp_path / "run")
    assert not (tmp_path / "run" / "tokens").exists()


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("{source: {en: a, de: b}, mixture: {exponent: 1.7}}", "exponent: should be less than or"),
        ("{source: {en: a, de: b}, mixture: {exponent: -1}}", "exponent: should be greater than"),
        ("{source: {en: a, de: b}, mixture: {exponent: true}}", "exponent is true, which is not"),
        (
            "{source: {en: a, de: b}, mixture: {weights: {en: 1, fr: 2}}}",
            "names en, fr, and source",
        ),
        ("{source: {en: a, de: b}, mixture: {weights: {en: 1}}}", "give each part one weight"),
        ("{source: {en: a}, mixture: {weights: {en: 0}}}", "weights.en: should be greater than 0"),
        ("{source: {en: a}, mixture: {}}", "give either exponent, such as 0.7, or weights"),
        ("{source: a, mixture: {exponent: 0.7}}", "source names none; give the sources of each"),
        ("{source: {en: []}}", "names no text for the part en"),
        ("{source: {}}", "source names no text"),
        ("{source: {'e.n': a}}", "corpus.source.e.n: string should match pattern"),
    ],
)
def test_bad_mixtures_are_refused_with_one_message(corpus, message):
    with pytest.raises(RecipeError) as refused:
        parse_recipe(f"teacher: sample\ncorpus: {corpus}")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_documents_of_a_part_need_not_be_many(sources, tmp_path):
    """One document of each part is cut into blocks, of which some are held out."""
    for part, path in sources.items():
        text = "\n".join(SENTENCES[part].format(n) for n in range(300))
        Path(path).write_text(json.dumps({"id": part, "text": text}) + "\n")
    run, said = prepared(recipe_for(sources), tmp_path / "run")
    for split in ("train", "validation"):
        assert np.all([*open_split(run.tokens, split).parts.values()])
    assert sum("blocks of the document are held out" in line for line in said) == 2
