"""A teacher kept as a few tokens: what is exact, what is unbiased, what is a bound."""

import pytest
import torch
from torch import Tensor

from stillhouse.objectives import chunks
from stillhouse.objectives.divergences.soft_target import soft_target_loss
from stillhouse.objectives.fused import LogitTerm, Projection, fused_losses
from stillhouse.objectives.sparse import sparse_rows, sparse_soft_target_loss
from stillhouse.tokens.batches import SparseRows

ROWS, SIZE, VOCABULARY = 5, 6, 40
TEMPERATURE = 2.0
KINDS = ("top_k", "sampled")
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def logits() -> Tensor:
    """A teacher's: one row nearly flat, one nearly certain."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([[0.1], [1.0], [3.0], [6.0], [30.0]])
    return torch.randn(ROWS, VOCABULARY, generator=generator) * scales


@pytest.fixture
def student_logits() -> Tensor:
    return torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2


def kept(logits: Tensor, kind, size: int, uniform: float = 0.3, temperature=TEMPERATURE):
    chance = torch.full((len(logits),), uniform)
    return sparse_rows(logits, kind, size, temperature=temperature, uniform=chance)


def dense(rows: SparseRows) -> Tensor:
    """The kept weights at their places in the vocabulary."""
    return torch.zeros(len(rows.ids), VOCABULARY).scatter_add_(1, rows.ids, rows.weights)


@each_kind
@pytest.mark.parametrize("size", [VOCABULARY, VOCABULARY + 10])
def test_the_whole_vocabulary_is_the_exact_loss(kind, size, logits, student_logits):
    """With every token kept nothing is lost: the soft target of the full logits."""
    rows = kept(logits, kind, size)
    found = sparse_soft_target_loss(student_logits, rows, temperature=TEMPERATURE)
    exact = soft_target_loss(student_logits, logits, temperature=TEMPERATURE)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.e2e
@pytest.mark.parametrize("size", [1, 3, 12, 39])
def test_a_sample_is_unbiased(size, logits):
    """Over every value of its one chance, a token's mean weight is its probability."""
    chances = (torch.arange(4000) + 0.5) / 4000
    total = torch.zeros(ROWS, VOCABULARY, dtype=torch.float64)
    for chance in chances.tolist():
        total += dense(kept(logits, "sampled", size, chance)).double()
    exact = torch.softmax(logits.double() / TEMPERATURE, dim=-1)
    # A token enters and leaves at two of 4,000 places, of weight at most 1.
    torch.testing.assert_close(total / len(chances), exact, rtol=0, atol=2 / 4000)


@each_kind
def test_each_row_is_kept_by_its_own_chance_whatever_the_blocks(kind, logits, monkeypatch):
    """In blocks of two rows, as it is row by row."""
    monkeypatch.setattr(chunks, "BLOCK_BYTES", 2 * 4 * VOCABULARY // torch.get_num_threads())
    chances = torch.tensor([0.1, 0.9, 0.4, 0.7, 0.2])
    rows = sparse_rows(logits, kind, 3, temperature=TEMPERATURE, uniform=chances)
    for number, chance in enumerate(chances.tolist()):
        alone = kept(logits[number : number + 1], kind, 3, chance)
        torch.testing.assert_close(rows.ids[number : number + 1], alone.ids)
        torch.testing.assert_close(rows.weights[number : number + 1], alone.weights)
        torch.testing.assert_close(rows.rest[number : number + 1], alone.rest)


@pytest.mark.parametrize("size", [1, 3, 12])
@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999999])
def test_a_sample_never_repeats_a_token_and_sums_to_one(size, chance, logits):
    rows = kept(logits, "sampled", size, chance)
    weighted = [
        [token for token, weight in zip(*pair, strict=True) if weight > 0]
        for pair in zip(rows.ids.tolist(), rows.weights.tolist(), strict=True)
    ]
    assert all(len(set(tokens)) == len(tokens) for tokens in weighted)
    torch.testing.assert_close(rows.weights.sum(-1), torch.ones(ROWS))


def test_likely_tokens_of_a_sample_keep_their_own_probability(logits):
    """Only tokens below the threshold are left to chance."""
    exact = torch.softmax(logits / TEMPERATURE, dim=-1)
    rows = kept(logits, "sampled", 6)
    threshold = rows.weights.min(-1, keepdim=True).values
    certain = exact > 1.001 * threshold
    torch.testing.assert_close(dense(rows)[certain], exact[certain])
    assert certain.any()


@pytest.mark.law("cache")
def test_the_sampled_loss_is_unbiased(logits, student_logits):
    """Its mean over the chance is the exact loss, and so is its gradient's."""
    student = student_logits.requires_grad_()
    chances = (torch.arange(1000) + 0.5) / 1000
    losses = [
        sparse_soft_target_loss(
            student, kept(logits, "sampled", 4, chance), temperature=TEMPERATURE
        )
        for chance in chances.tolist()
    ]
    mean = torch.stack(losses).mean()
    exact = soft_target_loss(student, logits, temperature=TEMPERATURE)
    torch.testing.assert_close(mean, exact, rtol=2e-3, atol=0)
    (found,), (wanted,) = torch.autograd.grad(mean, student), torch.autograd.grad(exact, student)
    assert float((found - wanted).norm() / wanted.norm()) < 5e-3


@pytest.mark.parametrize("size", [1, 5, 20])
def test_the_top_k_loss_is_a_lower_bound(size, logits, student_logits):
    """Fewer outcomes can only hide a difference; more tokens hide less."""
    exact = soft_target_loss(student_logits, logits, temperature=TEMPERATURE)
    found, more = (
        sparse_soft_target_loss(
            student_logits, kept(logits, "top_k", number), temperature=TEMPERATURE
        )
        for number in (size, size + 10)
    )
    assert 0 < found < more <= exact


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("size", [1, 6, VOCABULARY])
@pytest.mark.law("gradient")
def test_the_top_k_gradient_is_that_of_k_tokens_and_a_tail(
    size, temperature, logits, student_logits
):
    """In float64: the tokens outside the top k are one outcome with their total mass."""
    leaf = student_logits.double().requires_grad_()
    p, q = (logits.double() / temperature).softmax(-1), (leaf / temperature).softmax(-1)
    outcomes = []
    for row, ids in zip((p, q), [p.topk(size).indices] * 2, strict=True):
        tail = row.scatter(1, ids, 0.0).sum(-1, keepdim=True)
        outcomes.append(torch.cat([row.gather(1, ids), tail] if size < VOCABULARY else [row], 1))
    teacher, student = outcomes
    loss = temperature**2 * (teacher * (teacher / student).log()).sum()
    (expected,) = torch.autograd.grad(loss, leaf)
    own = student_logits.clone().requires_grad_()
    total, _ = fused_losses(
        Projection(own, torch.eye(VOCABULARY), None),
        kept(logits, "top_k", size, temperature=temperature),
        torch.zeros(ROWS, dtype=torch.long),
        {"soft_target": LogitTerm(1.0)},
        temperature=temperature,
    )
    (found,) = torch.autograd.grad(total, own)
    assert total.item() == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-4)


def test_top_k_holds_all_mass(logits):
    rows = kept(logits, "top_k", 7)
    torch.testing.assert_close(rows.weights.sum(-1) + rows.rest, torch.ones(ROWS))
    assert (rows.weights.diff(dim=-1) <= 0).all()


@each_kind
def test_a_student_like_its_teacher_has_nothing_to_learn(kind, logits):
    """Equal distributions: no top-k gradient, and a sampled one whose mean is zero."""
    student = logits.clone().requires_grad_()
    total = torch.zeros(())
    for chance in (torch.arange(500) + 0.5) / 500:
        rows = kept(logits, kind, 6, float(chance))
        total = total + sparse_soft_target_loss(student, rows, temperature=TEMPERATURE) / 500
    (gradient,) = torch.autograd.grad(total, student)
    assert gradient.abs().max() < (1e-5 if kind == "top_k" else 5e-3)


def reference_value(student_logits: Tensor, rows: SparseRows, temperature: float) -> float:
    """Independent of torch's functions: float64, one token at a time."""
    total = 0.0
    for row in range(len(student_logits)):
        scaled = [float(z) / temperature for z in student_logits[row].double()]
        largest = max(scaled)
        powers = [torch.tensor(z - largest, dtype=torch.float64).exp().item() for z in scaled]
        q = [power / sum(powers) for power in powers]
        ids = rows.ids[row].tolist()
        for token, weight in zip(ids, rows.weights[row].double().tolist(), strict=True):
            if weight > 0:
                own = torch.tensor(weight).log().item() if rows.kind == "top_k" else 0.0
                total += weight * (own - torch.tensor(q[token], dtype=torch.float64).log().item())
        rest = float(rows.rest[row])
        if rows.kind == "sampled":
            total += rest
        elif rest > 0:
            others = sum(value for token, value in enumerate(q) if token not in ids)
            total += rest * torch.tensor(rest / others, dtype=torch.float64).log().item()
    return temperature**2 * total


@each_kind
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.law("cache")
def test_the_value_is_that_of_a_float64_reference(kind, temperature, logits, student_logits):
    rows = kept(logits, kind, 6, temperature=temperature)
    found = float(sparse_soft_target_loss(student_logits, rows, temperature=temperature))
    assert found == pytest.approx(reference_value(student_logits, rows, temperature), rel=1e-4)


@each_kind
@pytest.mark.parametrize("chunk_rows", [1, 2, 100])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_fused_equals_plain(kind, chunk_rows, temperature, logits):
    """The pass over chunks: the values and gradients of the plain losses, hard loss beside."""
    generator = torch.Generator().manual_seed(2)
    shapes = ((ROWS, SIZE), (VOCABULARY, SIZE), (VOCABULARY,))
    parts = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    features, weight, bias = parts
    rows = kept(logits, kind, 6, temperature=temperature)
    labels = torch.tensor([3, -100, 0, 39, 7])
    counted = torch.tensor([True, True, False, True, True])
    terms = {"soft_target": LogitTerm(5.0, counted), "language_modeling": LogitTerm(2.0)}
    total, values = fused_losses(
        Projection(features, weight, bias),
        rows,
        labels,
        terms,
        temperature=temperature,
        chunk_rows=chunk_rows,
    )
    student_logits = features @ weight.T + bias
    soft = sparse_soft_target_loss(
        student_logits[counted], rows[counted.nonzero().squeeze(1)], temperature=temperature
    )
    hard = torch.nn.functional.cross_entropy(student_logits, labels, reduction="sum")
    torch.testing.assert_close(values["soft_target"], soft.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, 5 * soft + 2 * hard, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(
        torch.autograd.grad(total, parts),
        torch.autograd.grad(5 * soft + 2 * hard, parts),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)


def test_what_needs_the_whole_distribution_is_refused(logits, student_logits):
    projection = Projection(student_logits, torch.eye(VOCABULARY), None)
    labels = torch.zeros(ROWS, dtype=torch.long)
    with pytest.raises(ValueError, match="reverse_kl"):
        fused_losses(projection, kept(logits, "top_k", 4), labels, {"reverse_kl": LogitTerm(1.0)})
