"""Layers dropped greedily: against students that are built and compared, token by token."""

import numpy as np
import pytest
import torch
from tests.tiny_models import VOCABULARY

from stillhouse.families.registry import family_of
from stillhouse.models.load import load_model
from stillhouse.student import greedy
from stillhouse.student.calibration import Calibration
from stillhouse.student.greedy import EVERY, drop_greedily, long_context_rows, repeated_tokens
from stillhouse.student.importance import loss_on
from stillhouse.student.initialize import student_from_teacher
from stillhouse.student.plan import plan_student
from stillhouse.student.settings import StudentRecipe
from stillhouse.tokens.batches import IGNORED, Batch
from stillhouse.tokens.packing import pack
from stillhouse.tokens.settings import TokensRecipe
from stillhouse.tokens.shards import TokenSplit

SHORT = 8  # tokens of a short context


@pytest.fixture
def long_text(words, tiny_tokenizer):
    """Sequences of 24 tokens, of two documents."""
    tiny_tokenizer.eos_token = "[SEP]"
    documents = [np.array([3, *words(100)]), np.array([3, *words(59, seed=1)])]
    split = TokenSplit.in_memory(documents, VOCABULARY)
    tokens = TokensRecipe(language_modeling="causal", sequence_length=24)
    return Calibration(pack(split, tiny_tokenizer, tokens), 1_000)


@torch.no_grad()
def log_likelihoods(model, batch, *, pieces: bool) -> np.ndarray:
    """The log-probability of each label, (B, T), from the tokens of its document alone, or of its
    piece of a document: one call of transformers for each position."""
    found = np.full(batch.labels.shape, np.nan)
    for row, place in (batch.labels >= 0).nonzero().tolist():
        position = int(batch.position_ids[row, place])
        start = place - (position % SHORT if pieces else position)
        logits = model(batch.input_ids[row, start : place + 1][None]).logits[0, -1].double()
        found[row, place] = logits.log_softmax(-1)[batch.labels[row, place]]
    return found


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(n, marks=pytest.mark.e2e) for n in ("gpt2", "gemma2"))]
)
def test_tokens_that_need_a_long_context_are_likely_with_it_alone(
    family, tiny_model, long_text, monkeypatch
):
    """By the definition, computed one position at a time."""
    model = tiny_model(family)
    monkeypatch.setattr(greedy, "SHORT_CONTEXT", SHORT)
    monkeypatch.setattr(greedy, "GAIN", 0.0)
    monkeypatch.setattr(greedy, "LIKELY", -np.log(VOCABULARY))
    own, (batch,) = family_of(model.config), long_text.batches()
    with torch.no_grad():
        found = long_context_rows(own, model, batch, own.run_body(model, batch).flatten(0, 1))
    whole, short = (log_likelihoods(model, batch, pieces=pieces) for pieces in (False, True))
    places = batch.position_ids.numpy()
    late = (places >= SHORT) & (places % SHORT >= SHORT // 2)
    expected = late & (whole > short) & (whole > greedy.LIKELY)
    assert 0 < expected.sum() < late.sum()
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bert"])
def test_layers_are_dropped_by_the_distance_of_the_students(family, tiny_model, text_for):
    """Each drop is the best of the students without one more layer, which are built and compared
    with their teacher in float64; its text needs no long context."""
    model = tiny_model(family, num_layers=4)
    own, text = family_of(model.config), text_for(model)
    found = drop_greedily(own, model, text, 2)
    kept = [0, 1, 2, 3]
    for drop, (dropped, distance) in enumerate(zip(found.dropped, found.distances, strict=True)):
        distances = {}
        for layer in kept:
            layers = [each for each in kept if each != layer]
            recipe = StudentRecipe(layer_map=layers, family=family)
            student = student_from_teacher(model, plan_student(model.config, recipe))
            distances[layer] = mean_kl(model, student, text)
            losses = loss_on(own, model, text, layers=layers), loss_on(own, student, text)
            assert losses[0] == pytest.approx(losses[1])
        assert min(distances, key=distances.__getitem__) == dropped
        assert distances[dropped] == pytest.approx(distance, rel=1e-4)
        if drop == 0:
            assert found.scores == pytest.approx([*distances.values()], rel=1e-4)
        kept.remove(dropped)


@torch.no_grad()
def mean_kl(teacher, student, text) -> float:
    """Over the rows that are scored: of a causal text every eighth, and repeated tokens."""
    batches = [*text.batches()]
    found = of_rows(teacher, student, batches, EVERY if batches[0].causal else 1)
    if batches[0].causal:
        tokens = torch.cat([batch.input_ids[batch.segment_ids > 0] for batch in batches])
        found += of_rows(teacher, student, [repeated_tokens(tokens, 24)], 1)
    return found


@torch.no_grad()
def of_rows(teacher, student, batches, every: int) -> float:
    """The mean over one in `every` predicted rows."""
    own, total, count = family_of(teacher.config), 0.0, 0
    for batch in batches:
        rows = batch.row_numbers("predicted")[::every]
        p, q = (
            own.head(each).logits(own.head(each).transform(own.run_body(each, batch)))
            for each in (teacher, student)
        )
        p, q = (each.flatten(0, 1)[rows].double().log_softmax(-1) for each in (p, q))
        total += float((p.exp() * (p - q)).sum())
        count += len(rows)
    return total / count


def test_repeated_tokens_are_predicted_from_the_second_time_on():
    """All but the first of them; as many as the model takes."""
    batch = repeated_tokens(torch.arange(5, 50), 24)
    assert batch.input_ids.shape == (16, 24)
    for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        assert ids[:12] == ids[12:]
        assert labels == [IGNORED] * 12 + ids[13:] + [IGNORED]
    assert batch.input_ids.unique().numel() > 30


@pytest.mark.e2e
def test_smollm2_needs_its_context_where_text_repeats(smollm2_folder):
    """Random tokens twice: the second time it knows them from the first."""
    own, model = load_model(smollm2_folder)
    once = torch.randint(100, 40_000, (128,), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([once, once])[None]
    batch = Batch(
        ids,
        torch.cat([ids[:, 1:], torch.tensor([[IGNORED]])], 1),
        torch.ones_like(ids),
        torch.arange(256)[None],
        causal=True,
        uniform=True,
    )
    with torch.no_grad():
        found = long_context_rows(own, model, batch, own.run_body(model, batch)[0])[0]
    assert not found[:127].any()
    assert found[160:].float().mean() > 0.2  # of half that are looked at
