"""The cost of a token, compared with counts from real models: their operations, their tensors."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.tiny_models import EVERY_FAMILY
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config

from stillhouse.families.registry import family_of
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.tokens.batches import IGNORED
from stillhouse.tokens.settings import TokensRecipe
from stillhouse.training.cost import StepShape, count_flops, planned_step, projection_size
from stillhouse.training.device import Precision
from stillhouse.training.settings import OptimizerRecipe, PretrainingRecipe
from stillhouse.training.step import make_optimizer

ROWS, LENGTH = 3, 12
POSITIONS = ROWS * LENGTH
CPU = torch.device("cpu")


def shape(*, micro_batches: int = 1, precision: Precision = "fp32", **changes: Any) -> StepShape:
    """Whole sequences, in which every position sees every other, as eager attention computes."""
    numbers: dict[str, Any] = {
        "pairs": POSITIONS * LENGTH,
        "read_rows": POSITIONS,
        "student_rows": POSITIONS,
        "teacher_rows": POSITIONS,
    }
    return StepShape(
        POSITIONS, **{**numbers, **changes}, micro_batches=micro_batches, precision=precision
    )


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("num_rows", [POSITIONS, 5])
def test_flops_equal_those_that_torch_counts(tiny_model, batch_of, words, family, num_rows):
    """Forward and backward of a student, forward of a teacher, exactly."""
    model = tiny_model(family)
    kind = family_of(model.config)
    causal = kind.language_modeling == "causal"
    batch = batch_of([[words(LENGTH, row)] for row in range(ROWS)], LENGTH, causal=causal)
    labels = torch.full((POSITIONS,), IGNORED)
    labels[-num_rows:] = 1
    batch = replace(batch, labels=labels.view(ROWS, LENGTH))

    def logits() -> torch.Tensor:
        head = kind.head(model)
        return head.transform(kind.run_rows(model, batch, "predicted")) @ head.weight.T

    with FlopCounterMode(display=False) as student:
        logits().sum().backward()
    with FlopCounterMode(display=False) as teacher, torch.no_grad():
        logits()
    step = shape(read_rows=num_rows, student_rows=num_rows, teacher_rows=num_rows)
    found = count_flops(step, model.config, model.config).flops
    per_token = {name: POSITIONS * number for name, number in found.items()}
    assert per_token["student_body"] + per_token["student_head"] == pytest.approx(
        student.get_total_flops(), rel=1e-12
    )
    assert per_token["teacher_body"] + per_token["teacher_head"] == pytest.approx(
        teacher.get_total_flops(), rel=1e-12
    )


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("bf16", 2)])
def test_bytes_are_those_of_the_tensors(tiny_model, precision, width):
    """Of a GPT-2 of 2 layers of 16, V 60: AdamW's own tensors, and the matrices by hand."""
    model = tiny_model("gpt2")
    optimizer = make_optimizer(model, OptimizerRecipe())
    torch.stack([parameter.sum() for parameter in model.parameters()]).sum().backward()
    optimizer.step()
    weights = [parameter.nbytes for parameter in model.parameters()]
    gradients = [parameter.grad.nbytes for parameter in model.parameters()]
    moments = [
        state[key].nbytes for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")
    ]
    work = count_flops(
        shape(micro_batches=3, precision=precision), model.config, model.config
    ).bytes_moved
    expected = {
        "optimizer": 2 * sum(weights) + sum(gradients) + 2 * sum(moments),
        "gradients": (1 + 2 * 2 + 1) * sum(gradients),
        "student_weights": 3 * 2 * width * (2 * 12 * 16**2 + 60 * 16),
        "teacher_weights": 3 * width * (2 * 12 * 16**2 + 60 * 16),
    }
    assert {name: POSITIONS * number for name, number in work.items()} == pytest.approx(expected)


def test_a_projection_of_hidden_states_is_counted():
    """Three passes over the rows of each loss that reads it, and a weight for the optimizer."""
    student, teacher = GPT2Config(n_embd=8, n_head=1), GPT2Config(n_embd=16, n_head=2)
    losses = LossesRecipe.model_validate(
        {"hidden_cosine": {"weight": 1.0}, "hidden_mse": {"weight": 1.0, "rows": "predicted"}}
    )
    size = projection_size(losses, student, teacher)
    assert size == 8 * 16
    assert projection_size(losses, teacher, teacher) == 0
    step = shape(hidden_rows=POSITIONS + 5)
    plain, found = (count_flops(step, student, None, projection=n) for n in (0, size))
    assert found.flops["hidden_projection"] == 3 * 2 * size * (POSITIONS + 5) / POSITIONS
    assert {**found.flops, "hidden_projection": None} == {**plain.flops, "hidden_projection": None}
    more = found.bytes_moved["optimizer"] - plain.bytes_moved["optimizer"]
    assert more == pytest.approx(7 * 4 * size / POSITIONS)


def test_a_head_that_no_row_reaches_is_not_read(tiny_config):
    """A student of hidden states alone needs neither head."""
    config = tiny_config("gpt2")
    work = count_flops(shape(student_rows=0, teacher_rows=0), config, config)
    whole = count_flops(shape(), config, config)
    assert work.flops["student_head"] == work.flops["teacher_head"] == 0
    head_bytes = 4 * 60 * 16 / POSITIONS
    for name, passes in (("student_weights", 2), ("teacher_weights", 1)):
        difference = whole.bytes_moved[name] - work.bytes_moved[name]
        assert difference == pytest.approx(passes * head_bytes)


@pytest.mark.parametrize("step", [shape(), shape(teacher_rows=None)])
def test_a_teacher_that_does_not_run_costs_nothing(tiny_config, step):
    """Its outputs are stored, or no term asks for them."""
    config = tiny_config("gpt2")
    alone = count_flops(step, config, None if step.teacher_rows else config)
    with_teacher = count_flops(shape(), config, config)
    assert not [name for name in (*alone.flops, *alone.bytes_moved) if "teacher" in name]
    for name, number in alone.flops.items():
        assert number == with_teacher.flops[name]


def planned(losses: dict[str, dict], *, language_modeling: str) -> StepShape:
    """Five sequences of 8 a step, two at a time."""
    return planned_step(
        LossesRecipe.model_validate(losses),
        TokensRecipe.model_validate(
            {"language_modeling": language_modeling, "sequence_length": 8, "tokenizer": "any"}
        ),
        PretrainingRecipe(tokens_per_step=47, micro_batch_tokens=23, precision="fp32"),
        CPU,
    )


def test_a_planned_step_is_that_of_the_engine():
    """Whole sequences alone; a causal position sees itself and those before it."""
    losses = {"soft_target": {"weight": 1.0}}
    causal = planned(losses, language_modeling="causal")
    assert causal == StepShape(40, 5 * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8), 40, 40, 40, 3, "fp32")
    assert planned(losses, language_modeling="masked").pairs == 5 * 8 * 8


@pytest.mark.parametrize(
    ("losses", "read_rows", "student_rows", "teacher_rows"),
    [
        ({"soft_target": "all", "language_modeling": None}, 40, 40, 40),
        ({"soft_target": "predicted", "language_modeling": None}, 6, 6, 6),
        ({"soft_target": "predicted", "hidden_cosine": "all"}, 40, 6, 6),
        ({"language_modeling": None, "hidden_cosine": "all"}, 40, 6, 0),
        ({"hidden_cosine": "all"}, 40, 0, 0),
        ({"language_modeling": None, "relation": "all"}, 6, 6, 0),
        ({"language_modeling": None}, 6, 6, None),
    ],
)
def test_rows_are_those_that_a_term_reads(losses, read_rows, student_rows, teacher_rows):
    """Fifteen percent of 40 masked positions are predicted; only divergences ask the teacher's
    head; a relation reads no last hidden state."""
    terms = {
        name: {"weight": 1.0, **({} if rows is None else {"rows": rows})}
        for name, rows in losses.items()
    }
    step = planned(terms, language_modeling="masked")
    assert step.read_rows == pytest.approx(read_rows)
    assert step.student_rows == pytest.approx(student_rows)
    if teacher_rows is None:
        assert step.teacher_rows is None
    else:
        assert step.teacher_rows == pytest.approx(teacher_rows)
