"""A student that drafts for its teacher: what comes out is the teacher's own."""

import numpy as np
import pytest
import torch
from tests.task_models import make_tokenizer
from tests.tiny_models import EVERY_CAUSAL_FAMILY, make_config
from transformers import AutoModelForCausalLM

from stillhouse.errors import ModelError
from stillhouse.families.registry import family_of
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.engine.batcher import NotFiniteError
from stillhouse.inference.engine.kv_cache import Chunk, SlottedModel
from stillhouse.inference.engine.sampling import candidates
from stillhouse.inference.engine.speculative import DraftedText, Speculation
from stillhouse.inference.generation import Generation
from stillhouse.tokens.vocabulary import trim_tokenizer

VOCABULARY = 12
PROMPT = (3, 1, 4, 1, 5)


def make_model(
    seed: int, family: str = "gpt2", *, num_layers: int = 2, vocabulary: int = VOCABULARY
) -> SlottedModel:
    torch.manual_seed(seed)
    config = make_config(family, num_layers, vocabulary=vocabulary, positions=48)
    config.initializer_range, config.eos_token_id = 0.5, None
    return SlottedModel(family_of(config), AutoModelForCausalLM.from_config(config).eval(), 2)


def generated(speculation: Speculation, settings: Generation, seed: int = 0) -> list[int]:
    tokens = speculation.generate(PROMPT, settings, seed, frozenset())
    return [token.id for token in tokens]


@pytest.mark.parametrize("num_drafted", [1, 3, 7])
@pytest.mark.parametrize("student_seed", [0, 1])
@pytest.mark.parametrize("family", EVERY_CAUSAL_FAMILY)
def test_greedy_text_is_the_teacher_s(family, num_drafted, student_seed):
    """Whether the student agrees (it is the teacher) or knows nothing of it."""
    teacher, student = make_model(0, family), make_model(student_seed, family)
    speculation = Speculation(teacher, student, num_drafted)
    inputs = torch.tensor([PROMPT])
    expected = teacher.model.generate(  # pyright: ignore[reportCallIssue]
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=30,
        min_new_tokens=30,
        do_sample=False,
        pad_token_id=0,
    )[0, len(PROMPT) :].tolist()
    assert generated(speculation, Generation(greedy=True, max_new_tokens=30)) == expected
    assert speculation.num_drafted > speculation.num_accepted or student_seed == 0
    if student_seed == 0:
        assert speculation.acceptance_rate == 1
        assert speculation.num_rounds == -(-30 // (num_drafted + 1))


def exact(teacher: SlottedModel, settings: Generation) -> torch.Tensor:
    """The probability of each pair of tokens after the prompt, by the chain rule."""

    def distribution(ids: tuple[int, ...]) -> torch.Tensor:
        place = teacher.open()
        (row,) = teacher.forward([Chunk(place, ids)])
        teacher.close(place)
        found = candidates(row, settings, ids)
        return torch.zeros(VOCABULARY, dtype=torch.float64).index_add(
            0, found.ids, found.probabilities
        )

    first = distribution(PROMPT)
    return torch.stack([p * distribution((*PROMPT, token)) for token, p in enumerate(first)])


@pytest.mark.e2e  # thousands of samples: over 2 s of CPU
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5, "top_k": 6, "top_p": 0.9}], ids=str)
def test_samples_are_distributed_as_the_teacher_s(settings):
    """4,000 pairs of tokens against the exact probabilities of all pairs: the chi-squared statistic
    lies within five of its own deviations. The student is another model: much is rejected."""
    teacher, student = make_model(0), make_model(1)
    asked = Generation(max_new_tokens=2, **{"top_k": 0, **settings})
    speculation = Speculation(teacher, student, 2)
    counts = torch.zeros(VOCABULARY, VOCABULARY, dtype=torch.float64)
    number = 4_000
    for seed in range(number):
        first, second = generated(speculation, asked, seed)
        counts[first, second] += 1
    assert 0.05 < (speculation.acceptance_rate or 0) < 0.9
    expected = exact(teacher, asked)
    assert counts[expected == 0].sum() == 0
    common = number * expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = number * torch.cat([expected[common], expected[~common].sum()[None]])
    wanted, observed = wanted[wanted > 0], observed[wanted > 0]
    degrees = len(wanted) - 1
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    assert degrees > 5
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5


def test_a_seed_gives_the_same_text_again():
    """And another seed another one; each token says whether it was drafted."""
    teacher, student = make_model(0), make_model(1)
    asked = Generation(max_new_tokens=20, top_k=0)
    texts = [generated(Speculation(teacher, student), asked, seed) for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]
    speculation = Speculation(teacher, student)
    tokens = list(speculation.generate(PROMPT, asked, 5, frozenset()))
    assert sum(token.is_drafted for token in tokens) == speculation.num_accepted
    assert teacher.num_free == student.num_free == 2


def test_an_end_token_ends_the_text():
    """Though more had been drafted and accepted."""
    teacher = make_model(0)
    asked = Generation(greedy=True, max_new_tokens=20)
    free = generated(Speculation(teacher, make_model(0)), asked)
    end = free[4]
    tokens = Speculation(teacher, make_model(0)).generate(PROMPT, asked, 0, frozenset({end}))
    assert [token.id for token in tokens] == free[: free.index(end) + 1]


@pytest.mark.parametrize("broken", [0, 1])
def test_numbers_that_are_not_finite_are_told(broken):
    """Of the teacher as of the student: nothing is drawn from them."""
    models = make_model(0), make_model(1)
    with torch.no_grad():
        models[broken].model.transformer.wpe.weight[9] = torch.nan  # pyright: ignore
    with pytest.raises(NotFiniteError, match="not finite"):
        generated(Speculation(*models), Generation(max_new_tokens=20))
    assert [model.num_free for model in models] == [2, 2]


def test_other_tokens_cannot_draft():
    """Two students of one teacher, trimmed on different texts, have vocabularies of one size."""
    whole, models = make_tokenizer("gpt2"), []
    for rare in (280, 281):
        kept = np.array([id for id in range(len(whole)) if id != rare])
        tokenizer = trim_tokenizer(whole, kept)
        models.append(CausalLM(make_model(0, vocabulary=len(kept)).model, tokenizer))
    student, other = models
    teacher = CausalLM(make_model(0, vocabulary=len(whole)).model, whole)
    with pytest.raises(ModelError, match=rf"has {len(whole)} tokens and the student {len(kept)},"):
        DraftedText(teacher, student, PROMPT, Generation(max_new_tokens=5))
    with pytest.raises(ModelError, match="not the same ones"):
        DraftedText(student, other, PROMPT, Generation(max_new_tokens=5))
    DraftedText(student, student, PROMPT, Generation(max_new_tokens=5))
