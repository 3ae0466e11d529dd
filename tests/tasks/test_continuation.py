"""What a model writes after a prompt: the same alone and in a batch, and worth what the metrics'
libraries say."""

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

import stillhouse
from stillhouse.errors import DataError, RecipeError
from stillhouse.inference.load import load_for_task
from stillhouse.models.hub import resolve_folder
from stillhouse.recipe_file import parse_task
from stillhouse.tasks.encoded import TextExample

ROWS = [
    ("le chat dort", "the cat sleeps"),
    ("la mer est froide", "the sea is cold"),
    ("import os, puis un long chemin vers la vieille maison", "import os, then a long way home"),
    ("il dit que personne ne sait", "he says that nobody knows"),
]
ASKED = TextExample("x", target="y")
SHORT = ["columns={text: fr, target: en}", "max_new_tokens=12", "max_length=64"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("fr\ten\n" + "".join(f"{fr}\t{en}\n" for fr, en in ROWS))
    return path


def loaded(*settings, name="continuation"):
    recipe = parse_task(name, [*SHORT, *settings])
    return load_for_task(resolve_folder("sample", offline=True), recipe)


@pytest.mark.e2e
def test_continuation_is_independent_of_batching(data):
    """And equals the language model's own generation."""
    model = loaded()
    examples = model.task.read(data)
    together, _ = model.predictions_and_cuts(examples)
    plain = stillhouse.load("sample")
    for example, text in zip(examples, together, strict=True):
        assert model.predictions([example]) == [text]
        (alone,) = plain.generate(example.text, max_new_tokens=12, greedy=True)
        assert text == alone.removeprefix(example.text).strip()
    assert len(set(together)) > 1


@pytest.mark.e2e
def test_shots_precede_the_prompt_and_are_not_scored(data):
    """With what follows each; the prompt keeps its end where the text is too long."""
    model = loaded("prompt='{text} ='", "shots=2", "max_length=80")
    examples = model.task.read(data)
    assert [example.text for example in examples] == [fr for fr, _ in ROWS[2:]]
    (short,), (whole,) = (
        model.task.encode([example], model.tokenizer)[0] for example in examples[::-1]
    )
    assert model.decode(short.input_ids.tolist()) == (
        "le chat dort = the cat sleeps\nla mer est froide = the sea is cold\n"
        "il dit que personne ne sait ="
    )
    assert not short.is_truncated
    small = loaded("prompt='{text} ='", "max_length=20")
    ((cut,),) = small.task.encode([examples[0]], small.tokenizer)
    assert cut.is_truncated
    assert len(cut.input_ids) == 20 - 12
    assert small.decode(cut.input_ids.tolist()).endswith(" =")
    assert len(whole.input_ids) <= 80 - 12


@pytest.mark.e2e
def test_continuation_ends_at_stop_and_number_of_sentences():
    """At the stop text, then after `sentences` sentences."""
    texts = {"": "One. Two! Three? Four", "stop='!'": "One. Two", "sentences=2": "One. Two!"}
    for setting, expected in texts.items():
        task = loaded(*([setting] if setting else [])).task
        tokenizer = loaded().tokenizer
        sequences = task.encode([ASKED], tokenizer)[0]
        assert task.predict(ASKED, sequences, ["One. Two! Three? Four"]) == expected


@pytest.mark.e2e
def test_bleu_and_rouge_equal_their_libraries(data):
    """BLEU of the set and ROUGE's mean, each with an interval that holds it."""
    task = loaded().task
    examples = task.read(data)
    said = ["the cat sleeps", "the sea is very cold", "import os, a long way", "nobody says"]
    targets = [en for _, en in ROWS]
    found = task.metric_samples(said, examples)
    expected = sacrebleu.corpus_bleu(said, [targets])
    assert found["bleu"].value == pytest.approx(expected.score, abs=1e-9)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeLsum"], use_stemmer=True)
    for name in ("rouge1", "rouge2", "rougeLsum"):
        each = [
            scorer.score(en, text)[name].fmeasure for en, text in zip(targets, said, strict=True)
        ]
        assert found[name].value == pytest.approx(100 * np.mean(each))
        interval = found[name].interval()
        assert interval.low <= interval.value <= interval.high


@pytest.mark.e2e
def test_sampling_is_reproducible_by_seed(data):
    """The same for the same seed, another for another."""
    examples = loaded().task.read(data)
    first, again, other = (
        loaded("top_k=20", f"seed={seed}").predictions(examples) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_unusable_examples_and_prompts_are_refused(data):
    """Too few rows for the examples, a prompt without the text, training on it."""
    with pytest.raises(DataError, match="has 4 rows, of which 4 are shown"):
        loaded("shots=4").task.read(data)
    with pytest.raises(RecipeError, match="leaves no room for the prompt"):
        loaded("max_length=12").predictions([ASKED])
    with pytest.raises(RecipeError, match=r"must hold \{text\} once"):
        loaded("prompt=none")
    with pytest.raises(RecipeError, match="continuation is zero-shot"):
        loaded().task.read_training(data)
