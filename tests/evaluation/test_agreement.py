"""How far a student agrees with its teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_models import make_config
from transformers import AutoModelForCausalLM

from stillhouse.evaluation.agreement_bins import frequency_edges, position_edges
from stillhouse.evaluation.metrics.agreement import agreement, overlaps
from stillhouse.families.registry import family_of
from stillhouse.inference.engine.kv_cache import SlottedModel
from stillhouse.inference.engine.speculative import Speculation
from stillhouse.inference.generation import Generation
from stillhouse.tokens.packing import CausalSequences
from stillhouse.tokens.shards import TokenSplit

VOCABULARY, LENGTH = 30, 16


def make_model(seed: int):
    torch.manual_seed(seed)
    config = make_config("gpt2", vocabulary=VOCABULARY, positions=64)
    config.initializer_range = 0.5
    return family_of(config), AutoModelForCausalLM.from_config(config).eval()


def make_source(length: int = LENGTH) -> CausalSequences:
    ids = np.random.default_rng(0).integers(1, VOCABULARY, 130)
    starts, counts = np.array([0, 130], np.uint64), np.bincount(ids, minlength=VOCABULARY)
    split = TokenSplit(VOCABULARY, (ids,), starts, counts.astype(np.uint64), (Path("none"),))
    return CausalSequences(split, length, end_of_text=0, attend_across_documents=True)


@pytest.fixture
def source() -> CausalSequences:
    return make_source()


def by_hand(teacher, student, source: CausalSequences) -> dict[str, float]:
    """Token by token, in float64."""
    shared, same, count = 0.0, 0, 0
    for number in range(source.num_sequences):
        batch = source.batch(np.array([number]), np.array([0]), 0)
        with torch.no_grad():
            p, q = (
                model.double()(input_ids=batch.input_ids).logits[0].softmax(-1)
                for _, model in (teacher, student)
            )
        for place in range(int(batch.rows("predicted").sum())):
            shared += float(torch.minimum(p[place], q[place]).sum())
            same += int(p[place].argmax() == q[place].argmax())
            count += 1
    for _, model in (teacher, student):
        model.float()
    return {"acceptance_rate": shared / count, "top1_agreement": same / count}


def test_agreement_is_the_mean_overlap_over_all_predicted_tokens(source):
    """Against sums written out, of two models that know nothing of each other."""
    teacher, student = make_model(0), make_model(1)
    found = agreement(teacher, {"student": student}, source)["student"]
    assert found == pytest.approx(by_hand(teacher, student, source), rel=1e-5)
    assert found["acceptance_rate"] is not None
    assert 0 < found["acceptance_rate"] < 0.9


def test_tokens_of_the_bins_add_up_to_all(source):
    """By frequency and by position; so do their shares and divergences, weighted by tokens."""
    teacher, student = make_model(0), make_model(1)
    found = agreement(teacher, {"student": student}, source, source.split.counts)["student"]
    num_tokens = sum(
        int(source.batch(np.array([number]), np.array([0]), 0).rows("predicted").sum())
        for number in range(source.num_sequences)
    )
    expected = by_hand(teacher, student, source)
    for bins in (found["by_frequency"], found["by_position"]):
        assert sum(each["tokens"] for each in bins) == num_tokens
        mean = sum(each["tokens"] * each["top1_agreement"] for each in bins) / num_tokens
        assert mean == pytest.approx(expected["top1_agreement"])


def test_a_token_is_in_the_bin_of_its_count_and_position():
    """Against sums written out in float64: each predicted token's KL, in the bins found by hand."""
    source = make_source(40)
    teacher, student = make_model(0), make_model(1)
    counts = np.array([0, *range(1, 10), 10, 99, 100, 1000, 25_000, *[12] * 15])
    found = agreement(teacher, {"student": student}, source, counts)["student"]
    frequency, position = {}, {}
    for number in range(source.num_sequences):
        batch = source.batch(np.array([number]), np.array([0]), 0)
        with torch.no_grad():
            p, q = (
                model.double()(input_ids=batch.input_ids).logits[0].softmax(-1)
                for _, model in (teacher, student)
            )
        for place in batch.rows("predicted")[0].nonzero().flatten().tolist():
            kl = float((p[place] * (p[place].log() - q[place].log())).sum())
            count = int(counts[batch.labels[0, place]])
            decade = 0 if count == 0 else 10 ** (len(str(count)) - 1)
            frequency.setdefault(decade, []).append(kl)
            position.setdefault(0 if place < 16 else 16 if place < 32 else 32, []).append(kl)
    for bins, by_hand_ in ((found["by_frequency"], frequency), (found["by_position"], position)):
        assert {each["low"]: each["tokens"] for each in bins} == {
            low: len(kls) for low, kls in by_hand_.items()
        }
        for each in bins:
            assert each["kl"] == pytest.approx(np.mean(by_hand_[each["low"]]), rel=1e-4)


def test_edges_are_decades_of_counts_and_doubled_positions():
    assert frequency_edges(np.array([0])) == [0, 1]
    assert frequency_edges(np.array([3, 1000])) == [0, 1, 10, 100, 1000]
    assert position_edges(128) == [0, 16, 32, 64]
    assert position_edges(8) == [0, 16]


def test_a_copy_agrees_with_its_teacher(source):
    found = agreement(make_model(0), {"copy": make_model(0), "other": make_model(1)}, source)
    assert found["copy"] == pytest.approx({"acceptance_rate": 1, "top1_agreement": 1})
    assert found["other"]["top1_agreement"] not in (None, 1)


def test_models_that_share_nothing_do_not_overlap():
    """All the probability on one token each."""
    certain = torch.full((2, 4), -1e9)
    p, q = certain.clone(), certain.clone()
    p[:, 0], q[0, 1], q[1, 0] = 0, 0, 0
    assert overlaps(p, q).tolist() == [0, 1]


@pytest.mark.e2e
def test_overlap_equals_the_measured_draft_acceptance_rate():
    """Of the first token drafted after many prompts, the share that the teacher keeps: within four
    standard errors of the mean overlap on those prompts."""
    teacher, student = make_model(0), make_model(1)
    prompts = np.random.default_rng(1).integers(1, VOCABULARY, (400, 5))
    inputs = torch.from_numpy(prompts)
    with torch.no_grad():
        p, q = (model(input_ids=inputs).logits[:, -1] for _, model in (teacher, student))
    expected = float(overlaps(p, q).mean())
    speculation = Speculation(SlottedModel(*teacher, 1), SlottedModel(*student, 1), num_drafted=1)
    settings = Generation(max_new_tokens=2, top_k=0)
    for seed, prompt in enumerate(prompts.tolist()):
        next(speculation.generate(prompt, settings, seed, frozenset()))
    assert speculation.num_drafted == len(prompts)
    error = (expected * (1 - expected) / len(prompts)) ** 0.5
    assert speculation.acceptance_rate == pytest.approx(expected, abs=4 * error)
