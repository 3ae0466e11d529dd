"""The fused losses: the values and gradients of the plain ones, without their memory."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stillhouse.objectives import chunks
from stillhouse.objectives.chunks import rows_per_chunk
from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.objectives.fused import (
    CROSS_ENTROPIES,
    LOGIT_TERMS,
    TEACHER_TERMS,
    LogitTerm,
    Projection,
    fused_losses,
)
from stillhouse.objectives.language_model import language_modeling_loss

ROWS, SIZE, TEACHER_SIZE, VOCABULARY = 7, 6, 5, 11
TEMPERATURE = 2.0
SETTINGS = {"jsd": {"beta": 0.3}, "skew_kl": {"alpha": 0.2}}

Parts = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def student() -> Parts:
    """Features, weight and bias that all want gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, SIZE), (VOCABULARY, SIZE), (VOCABULARY,))
    features, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return features.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@pytest.fixture
def teacher() -> Projection:
    """A teacher of another hidden size, which is nobody's business here."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((ROWS, TEACHER_SIZE), (VOCABULARY, TEACHER_SIZE), (VOCABULARY,))
    features, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return Projection(features, weight, bias)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([3, -100, 0, 10, -100, 7, 3])


@pytest.fixture
def mask() -> Tensor:
    return torch.tensor([True, True, False, True, False, False, True])


def plain_total(
    student: Parts, teacher: Projection, labels: Tensor, terms: dict[str, LogitTerm]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same sum through full logits, the plain losses and autograd."""
    features, weight, bias = student
    assert teacher.bias is not None
    student_logits = features @ weight.T + bias
    teacher_logits = teacher.features @ teacher.weight.T + teacher.bias
    values = {}
    for name, term in terms.items():
        loss = PLAIN[name]
        kept = slice(None) if term.rows is None else term.rows
        if name == "language_modeling":
            values[name] = loss(student_logits[kept], labels[kept])
        else:
            values[name] = loss(student_logits[kept], teacher_logits[kept])
    total = torch.stack([term.coefficient * values[name] for name, term in terms.items()]).sum()
    return total, values


def settings_of(name: str) -> dict[str, float]:
    """A divergence's own settings: other values than the defaults for some, the defaults else."""
    if name in SETTINGS or name == "language_modeling":
        return SETTINGS.get(name, {})
    return DIVERGENCES[name].settings(weight=1).model_dump(exclude={"weight", "rows"})


PLAIN: dict[str, Callable[..., Tensor]] = {
    name: partial(DIVERGENCES[name].loss, temperature=TEMPERATURE, **settings_of(name))
    for name in TEACHER_TERMS
}
PLAIN["language_modeling"] = language_modeling_loss


def terms_of(names: tuple[str, ...], rows: Tensor | None = None) -> dict[str, LogitTerm]:
    return {
        name: LogitTerm(
            0.5 + number, None if name == "language_modeling" else rows, settings_of(name)
        )
        for number, name in enumerate(names)
    }


def assert_equal_to_plain(
    student: Parts,
    teacher: Projection,
    labels: Tensor,
    terms: dict[str, LogitTerm],
    chunk_rows: int | None,
) -> None:
    expected, expected_values = plain_total(student, teacher, labels, terms)
    expected_gradients = torch.autograd.grad(expected, student)
    total, values = fused_losses(
        Projection(*student),
        teacher,
        labels,
        terms,
        temperature=TEMPERATURE,
        chunk_rows=chunk_rows,
    )
    gradients = torch.autograd.grad(total, student)
    torch.testing.assert_close(total, expected, atol=1e-5, rtol=2e-6)
    assert set(values) == set(expected_values)
    for name, value in values.items():
        torch.testing.assert_close(value, expected_values[name].detach(), atol=1e-5, rtol=2e-6)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOGIT_TERMS)
@pytest.mark.law("formula")
def test_each_term_has_the_value_and_gradients_of_the_plain_loss(
    name, masked, student, teacher, labels, mask
):
    """Fusing changes where the work is done, not what is computed."""
    terms = terms_of((name,), mask if masked else None)
    assert_equal_to_plain(student, teacher, labels, terms, chunk_rows=3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", [name for name in TEACHER_TERMS if name not in CROSS_ENTROPIES])
def test_divergence_without_a_gradient_by_hand_is_differentiated_by_autograd(
    name, masked, student, teacher, labels, mask, monkeypatch
):
    """A new divergence needs its formula alone."""
    plain = replace(DIVERGENCES[name], gradient=None)
    monkeypatch.setitem(DIVERGENCES, name, plain)
    terms = terms_of((name,), mask if masked else None)
    assert_equal_to_plain(student, teacher, labels, terms, chunk_rows=3)


@pytest.mark.parametrize("block_rows", [2, ROWS])
@pytest.mark.parametrize("chunk_rows", [1, 3, ROWS, 100, None])
def test_all_terms_at_once_do_not_depend_on_chunks_and_blocks(
    chunk_rows, block_rows, student, teacher, labels, mask, monkeypatch
):
    """Seven terms with seven coefficients share one pass, however the rows are cut."""
    block_bytes = block_rows * 4 * VOCABULARY // torch.get_num_threads()
    monkeypatch.setattr(chunks, "BLOCK_BYTES", block_bytes)
    terms = terms_of(LOGIT_TERMS) | terms_of(("jsd", "logit_mse"), mask)
    assert_equal_to_plain(student, teacher, labels, terms, chunk_rows)


def test_skew_without_skew_is_the_soft_target(student, teacher, labels):
    """At alpha = 0 the mixture is the student alone, though log(0) is not a number."""
    skew, soft = (
        fused_losses(
            Projection(*student),
            teacher,
            labels,
            {name: LogitTerm(1.0, settings=settings)},
            chunk_rows=2,
        )[0]
        for name, settings in (("skew_kl", {"alpha": 0.0}), ("soft_target", {}))
    )
    torch.testing.assert_close(skew, soft)
    for one, other in zip(
        torch.autograd.grad(skew, student), torch.autograd.grad(soft, student), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", LOGIT_TERMS)
@pytest.mark.law("gradient")
def test_the_gradient_is_the_slope_of_the_value(name, student, teacher, labels):
    """Independent of autograd: a small step along any direction changes the value by its slope."""
    features, weight, bias = (part.detach().double() for part in student)
    terms = terms_of((name,))

    def value(shift: float) -> float:
        # Logits are float32, so the step is large enough to rise above their rounding.
        moved = Projection((features + shift * direction).float(), weight.float(), bias.float())
        return float(fused_losses(moved, teacher, labels, terms, temperature=TEMPERATURE)[0])

    direction = torch.randn(
        features.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    wanted = Projection(student[0], student[1], student[2])
    total, _ = fused_losses(wanted, teacher, labels, terms, temperature=TEMPERATURE)
    (gradient,) = torch.autograd.grad(total, student[0])
    slope = (value(1e-3) - value(-1e-3)) / 2e-3
    assert slope == pytest.approx(float((gradient.double() * direction).sum()), rel=5e-3, abs=2e-2)


def test_a_factor_on_the_total_reaches_the_gradients(student, teacher, labels):
    """What multiplies the loss afterwards (a loss scale) multiplies its gradients."""
    terms = terms_of(("soft_target",))
    once, _ = fused_losses(Projection(*student), teacher, labels, terms)
    thrice, _ = fused_losses(Projection(*student), teacher, labels, terms)
    for one, three in zip(
        torch.autograd.grad(once, student), torch.autograd.grad(3 * thrice, student), strict=True
    ):
        torch.testing.assert_close(three, 3 * one)


def test_a_projection_without_bias(student, teacher, labels):
    """GPT-2's head has none: the same as a bias of zeros."""
    features, weight, bias = student
    terms = terms_of(LOGIT_TERMS)

    def loss(zeros: Tensor | None) -> Tensor:
        other = Projection(teacher.features, teacher.weight, zeros)
        return fused_losses(Projection(features, weight, zeros), other, labels, terms)[0]

    without, zeros = loss(None), loss(torch.zeros_like(bias))
    torch.testing.assert_close(without, zeros)
    for one, other in zip(
        torch.autograd.grad(without, (features, weight)),
        torch.autograd.grad(zeros, (features, weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_frozen_parts_get_no_gradient(student, teacher, labels):
    """A frozen projection costs no gradient, and the features' own is unchanged."""
    features, weight, bias = student
    terms = terms_of(("soft_target", "language_modeling"))
    frozen = Projection(features, weight.detach(), bias.detach())
    fused_losses(frozen, teacher, labels, terms)[0].backward()
    (expected,) = torch.autograd.grad(
        fused_losses(Projection(*student), teacher, labels, terms)[0], features
    )
    torch.testing.assert_close(features.grad, expected)
    assert weight.grad is None
    assert bias.grad is None


@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_bf16_stays_close_and_gives_back_bf16(name, student, teacher, labels):
    """Products in bfloat16, losses in float32: within bfloat16's 2^-8 of the float32 result."""
    terms = terms_of((name,))
    exact, _ = fused_losses(Projection(*student), teacher, labels, terms)
    exact_gradients = torch.autograd.grad(exact, student)
    low = tuple(part.detach().bfloat16().requires_grad_() for part in student)
    total, values = fused_losses(Projection(*low), teacher, labels, terms, chunk_rows=3)
    assert total.dtype == values[name].dtype == torch.float32
    torch.testing.assert_close(total, exact, atol=0.1, rtol=0.05)
    for found, wanted in zip(torch.autograd.grad(total, low), exact_gradients, strict=True):
        assert found.dtype == torch.bfloat16
        error = (found.float() - wanted).norm() / wanted.norm()
        # |p - q| has a kink: a logit that rounds to the other side turns its gradient around.
        assert error < (0.2 if name == "total_variation" else 0.03), float(error)


def test_autocast_takes_the_products_alone(student, teacher, labels):
    """Under autocast float32 parameters keep float32 gradients, near the exact ones."""
    terms = terms_of(("soft_target", "language_modeling"))
    exact = torch.autograd.grad(
        fused_losses(Projection(*student), teacher, labels, terms)[0], student
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = fused_losses(Projection(*student), teacher, labels, terms, chunk_rows=2)
    assert total.dtype == torch.float32
    for found, wanted in zip(torch.autograd.grad(total, student), exact, strict=True):
        assert found.dtype == torch.float32
        error = (found - wanted).norm() / wanted.norm()
        assert 0 < error < 0.03, float(error)


def test_nothing_the_size_of_the_logits_outlives_the_forward_pass(teacher):
    """What the graph keeps for backward is the size of the features and the projection."""
    rows, vocabulary = 64, 512
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, SIZE, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, SIZE, generator=generator, requires_grad=True)
    other = Projection(features.detach() + 1, weight.detach() - 1, None)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        total, _ = fused_losses(
            Projection(features, weight, None),
            other,
            torch.zeros(rows, dtype=torch.long),
            terms_of(LOGIT_TERMS),
            chunk_rows=8,
        )
    node = total.grad_fn
    held = [*kept, *(grad.numel() for grad in vars(node)["gradients"] if grad is not None)]
    assert max(held) <= max(features.numel(), weight.numel()) < rows * vocabulary


def test_no_operation_sees_more_than_a_chunk_of_logits(student, teacher, labels):
    """No tensor with a row for each position and a column for each word is ever made."""
    rows_of_logits: set[int] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, Tensor) and tensor.shape[1:] == (VOCABULARY,):
                    rows_of_logits.add(len(tensor))
            return result

    with Watch():
        total, _ = fused_losses(
            Projection(*student), teacher, labels, terms_of(LOGIT_TERMS), chunk_rows=2
        )
        total.backward()
    assert rows_of_logits - {SIZE, TEACHER_SIZE} == {1, 2}  # the transposed weights aside


def test_no_rows_is_a_sum_of_nothing(student, teacher):
    """A micro-batch in which no position counts adds zero, with zero gradients."""
    features, weight, bias = student
    empty = Projection(features[:0], weight, bias)
    nobody = Projection(teacher.features[:0], teacher.weight, teacher.bias)
    no_labels = torch.zeros(0, dtype=torch.long)
    total, _ = fused_losses(empty, nobody, no_labels, terms_of(LOGIT_TERMS))
    assert total.item() == 0
    for gradient in torch.autograd.grad(total, student, allow_unused=True):
        assert gradient is not None
        assert not gradient.any()


@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_extreme_logits_stay_finite(name):
    """Logits of +-10,000 overflow no exponential, in value and gradient."""
    features = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    other = Projection(torch.tensor([[-1e4, 1e4, 0.0], [-1e4, 1e4, -1e4]]), torch.eye(3), None)
    total, _ = fused_losses(
        Projection(features, torch.eye(3), None),
        other,
        torch.tensor([1, 0]),
        {name: LogitTerm(1.0, settings=settings_of(name))},
    )
    (gradient,) = torch.autograd.grad(total, features)
    assert total.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", TEACHER_TERMS)
def test_a_term_that_copies_needs_a_teacher(name, student, labels):
    """Asked to copy nobody, it says so rather than skip the term."""
    with pytest.raises(ValueError, match=name):
        fused_losses(Projection(*student), None, labels, terms_of((name,)))


def test_chunks_shrink_as_the_vocabulary_grows():
    """Twice the words, half the rows; but never fewer than 16."""
    cpu = torch.device("cpu")
    assert rows_per_chunk(10_000, cpu) == pytest.approx(2 * rows_per_chunk(20_000, cpu), abs=2)
    assert rows_per_chunk(10**9, cpu) == 16
