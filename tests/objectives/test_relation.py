"""The relation loss: its formula in float64, one number at a time, and what must not matter."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stillhouse.objectives import relation
from stillhouse.objectives.relation import relation_loss

# Three sequences: two documents and padding; one document; one short document and padding.
SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
SOME = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()
ALL = SEGMENTS > 0

Kinds = list[Tensor]


@pytest.fixture
def vectors() -> Callable[..., Kinds]:
    """vectors(size, seed=0): random queries, keys and values for SEGMENTS, of unequal lengths."""

    def make(size: int, seed: int = 0) -> Kinds:
        generator = torch.Generator().manual_seed(seed)
        shape = (*SEGMENTS.shape, size)
        return [scale * torch.randn(shape, generator=generator) for scale in (0.7, 1.0, 1.5)]

    return make


def visible(segments: Tensor = SEGMENTS, *, causal: bool = False) -> Tensor:
    same = segments[:, :, None] == segments[:, None, :]
    return same.tril() if causal else same


def relations(vectors: Tensor, row: int, seen: list[int], part: slice) -> list[Tensor]:
    """Softmax over what a row sees, in one head: plain sums of numbers of float64."""
    size = part.stop - part.start
    scores = [sum(vectors[row, part] * vectors[j, part]) / math.sqrt(size) for j in seen]
    exponentials = [torch.exp(torch.as_tensor(score)) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def textbook(
    student: Kinds, teacher: Kinds, rows: Tensor, *, causal: bool, num_heads: int
) -> tuple[Tensor, Kinds]:
    """The sum over rows of the mean over kinds and heads, with loops; and its gradients."""
    ours = [kind.double().requires_grad_() for kind in student]
    theirs = [kind.double() for kind in teacher]
    total = torch.zeros((), dtype=torch.float64)
    for kind_s, kind_t in zip(ours, theirs, strict=True):
        for b, row in rows.nonzero().tolist():
            segment = SEGMENTS[b].tolist()
            seen = [j for j, other in enumerate(segment) if other == segment[row]]
            seen = [j for j in seen if not causal or j <= row]
            for head in range(num_heads):
                parts = [
                    slice(head * size // num_heads, (head + 1) * size // num_heads)
                    for size in (kind_s.shape[-1], kind_t.shape[-1])
                ]
                q = relations(kind_s[b], row, seen, parts[0])
                p = relations(kind_t[b], row, seen, parts[1])
                kl = sum(a * torch.log(a / c) for a, c in zip(p, q, strict=True))
                total = total + kl / (num_heads * len(ours))
    return total.detach(), list(torch.autograd.grad(total, ours))


def value_and_gradients(student: Kinds, teacher: Kinds, *masks: Tensor, **options):
    leaves = [kind.detach().clone().requires_grad_() for kind in student]
    value = relation_loss(leaves, teacher, *masks, **options)
    return value.detach(), list(torch.autograd.grad(value, leaves))


@pytest.mark.parametrize("num_heads", [1, 2, 6])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("rows", [ALL, SOME], ids=["all", "some"])
def test_the_relation_loss_is_its_formula(vectors, rows, causal, num_heads):
    """Value and exact gradients, of models that differ in hidden size."""
    student, teacher = vectors(6), vectors(12, seed=1)
    expected, gradients = textbook(student, teacher, rows, causal=causal, num_heads=num_heads)
    found, ours = value_and_gradients(
        student, teacher, visible(causal=causal), rows, num_heads=num_heads
    )
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=2e-5)
    assert found.item() > 0.1
    for gradient, wanted in zip(ours, gradients, strict=True):
        torch.testing.assert_close(gradient, wanted.float(), atol=2e-6, rtol=2e-5)


def test_the_gradient_is_multiplied_by_what_comes_from_above(vectors):
    """A weight on the loss is a weight on its gradient."""
    student, teacher = vectors(6), vectors(6, seed=1)
    leaf = student[0].clone().requires_grad_()
    loss = relation_loss([leaf, *student[1:]], teacher, visible(), ALL, num_heads=2)
    (gradient,) = torch.autograd.grad(-3 * loss, leaf)
    once = value_and_gradients(student, teacher, visible(), ALL, num_heads=2)[1][0]
    torch.testing.assert_close(gradient, -3 * once)


def test_a_perfect_copy_has_nothing_to_learn(vectors):
    """Zero, and no gradient."""
    value, gradients = value_and_gradients(vectors(6), vectors(6), visible(), ALL, num_heads=3)
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients)


def test_a_rotation_of_a_heads_vectors_changes_nothing(vectors):
    """Relations are inner products: no coordinate of the teacher has to be found again."""
    teacher = vectors(6, seed=1)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)))[0]
    turned = [kind @ turn for kind in teacher]
    assert relation_loss(turned, teacher, visible(), ALL, num_heads=1).item() < 1e-5
    assert relation_loss(turned, teacher, visible(), ALL, num_heads=2).item() > 0.1


def test_the_size_of_a_chunk_changes_nothing(vectors, monkeypatch):
    """One head of one sequence at a time, several, or all at once."""
    student, teacher = vectors(6), vectors(12, seed=1)
    results = []
    for size in (1, 4 * 3 * 6 * 2, 4 * 3 * 6 * 5, 2**20):
        monkeypatch.setitem(relation.CHUNK_BYTES, "cpu", size)
        results.append(value_and_gradients(student, teacher, visible(), SOME, num_heads=3))
    for value, gradients in results[1:]:
        torch.testing.assert_close(value, results[0][0])
        torch.testing.assert_close(gradients, results[0][1])


class LargestTensor(TorchDispatchMode):
    """Sees every operation and keeps the size of the largest floating point result."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self.size = max(self.size, result.numel())
        return result


def test_relations_of_all_heads_are_never_in_memory(monkeypatch):
    """Nothing is larger than the vectors themselves, or than one chunk."""
    batch, length, size, num_heads = 4, 64, 32, 8
    kinds = [torch.randn(batch, length, size) for _ in range(3)]
    monkeypatch.setitem(relation.CHUNK_BYTES, "cpu", 4 * 2 * length * length)
    with LargestTensor() as largest:
        value_and_gradients(
            kinds,
            [kind.flip(0) for kind in kinds],
            torch.ones(batch, length, length, dtype=torch.bool),
            torch.ones(batch, length, dtype=torch.bool),
            num_heads=num_heads,
        )
    assert largest.size == 2 * length * length == batch * length * size


def test_parts_of_the_sequences_add_up(vectors):
    """A sum, not a mean: splitting the batch does not change value or gradients."""
    student, teacher, seen = vectors(6), vectors(6, seed=1), visible(causal=True)
    whole = value_and_gradients(student, teacher, seen, ALL, num_heads=2)
    parts = [
        value_and_gradients(
            [kind[part] for kind in student],
            [kind[part] for kind in teacher],
            seen[part],
            ALL[part],
            num_heads=2,
        )
        for part in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0])
    for kind, gradient in enumerate(whole[1]):
        torch.testing.assert_close(torch.cat([part[1][kind] for part in parts]), gradient)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_packed_documents_are_those_documents_apart(vectors, causal):
    """Each document alone, without padding: the same sum and the same gradients."""
    student, teacher = vectors(6), vectors(6, seed=1)
    whole = value_and_gradients(student, teacher, visible(causal=causal), ALL, num_heads=2)
    total = torch.zeros(())
    for b, segment in ((0, 1), (0, 2), (1, 1), (2, 1)):
        here = SEGMENTS[b] == segment
        seen = visible(torch.ones(1, int(here.sum())), causal=causal)
        value, gradients = value_and_gradients(
            [kind[b, here][None] for kind in student],
            [kind[b, here][None] for kind in teacher],
            seen,
            torch.ones(seen.shape[:2], dtype=torch.bool),
            num_heads=2,
        )
        total += value
        for alone, packed in zip(gradients, whole[1], strict=True):
            torch.testing.assert_close(alone[0], packed[b, here])
    torch.testing.assert_close(total, whole[0])


def test_what_no_row_sees_is_nothing_to_it(vectors):
    """Padding and other documents may hold anything; they get no gradient."""
    student, teacher = vectors(6), vectors(6, seed=1)
    first = (SEGMENTS == 1) & (torch.tensor([True, False, True])[:, None])
    expected = value_and_gradients(student, teacher, visible(), first, num_heads=2)
    for kinds in (student, teacher):
        for kind in kinds:
            kind[~first] = 1e4 * kind[~first].flip(0)
    found = value_and_gradients(student, teacher, visible(), first, num_heads=2)
    torch.testing.assert_close(found, expected)
    assert not any(gradient[~first].any() for gradient in found[1])


def test_the_order_of_positions_is_nothing_to_relations(vectors):
    """Positions of student, teacher and masks permuted alike give the same sum."""
    student, teacher = vectors(6), vectors(6, seed=1)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    expected = relation_loss(student, teacher, visible(), SOME, num_heads=2)
    found = relation_loss(
        [kind[:, order] for kind in student],
        [kind[:, order] for kind in teacher],
        visible(SEGMENTS[:, order]),
        SOME[:, order],
        num_heads=2,
    )
    torch.testing.assert_close(found, expected)


def test_without_rows_it_is_worth_nothing(vectors):
    """Zero, with zero gradients rather than NaN."""
    value, gradients = value_and_gradients(
        vectors(6), vectors(6, seed=1), visible(), torch.zeros_like(ALL), num_heads=2
    )
    assert value.item() == 0
    assert not any(gradient.any() for gradient in gradients)


def test_extreme_vectors_give_finite_values_and_gradients(vectors):
    """Scores of millions, certain of the right position and of the wrong one."""
    student, teacher = vectors(6), vectors(6, seed=1)
    value, gradients = value_and_gradients(
        [1e3 * kind for kind in student],
        [-1e3 * kind for kind in teacher],
        visible(causal=True),
        ALL,
        num_heads=2,
    )
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_reduced_precision_is_raised_before_the_relations(vectors):
    """bfloat16 vectors, also under autocast, give the float32 loss of their values."""
    student, teacher = ([kind.bfloat16() for kind in vectors(6, seed)] for seed in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        low, gradients = value_and_gradients(student, teacher, visible(), ALL, num_heads=2)
    student, teacher = ([kind.float() for kind in kinds] for kinds in (student, teacher))
    value, wanted = value_and_gradients(student, teacher, visible(), ALL, num_heads=2)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, value)
    for gradient, exact in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, exact.bfloat16())


def test_a_teacher_in_inference_mode_can_be_copied(vectors):
    """Nothing of the teacher is kept for the way back."""
    with torch.inference_mode():
        teacher = vectors(6, seed=1)
    found = value_and_gradients(vectors(6), teacher, visible(), ALL, num_heads=2)
    expected = value_and_gradients(vectors(6), vectors(6, seed=1), visible(), ALL, num_heads=2)
    torch.testing.assert_close(found, expected)
