"""Reconstruction: the fit against one by another solver in float64, and what it may not change."""

import copy
import re

import numpy as np
import pytest
import torch
from tests.tiny_models import make_config

from stillhouse.errors import ModelError, RecipeError
from stillhouse.families.base import with_layers
from stillhouse.families.registry import FAMILIES, family_of
from stillhouse.models.load import empty_model
from stillhouse.student.initialize import student_from_teacher
from stillhouse.student.plan import plan_student
from stillhouse.student.reconstruction import (
    RIDGE,
    check_reconstruction,
    output_projection,
    reconstruct,
)
from stillhouse.student.settings import StudentRecipe
from stillhouse.student.width import choose_widths

FITTED = [
    pytest.param(name, marks=() if name in ("llama", "gpt2", "opt") else pytest.mark.e2e)
    for name in FAMILIES
    if output_projection(make_config(name)) is not None
]


def cut(teacher, text, **shape):
    """A student of some layers and widths, the layers that it keeps, and its hidden channels."""
    plan = plan_student(teacher.config, StudentRecipe.model_validate(shape))
    kept = choose_widths(family_of(teacher.config), teacher, plan.narrow, text)
    return student_from_teacher(teacher, plan, kept), plan.layer_map, kept.hidden


def recorded(model, text, name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The hidden states after each layer, and what its module `name` reads, of the rows that are
    not padding, in float64."""
    family = family_of(model.config)
    after, reads = [], []
    hooks = []
    for layer in family.layers_of(model):
        hooks.append(layer.register_forward_hook(lambda *given: after.append(given[-1])))
        module = layer.get_submodule(name)
        hooks.append(module.register_forward_pre_hook(lambda _, args: reads.append(args[0])))
    (batch,) = text.batches()
    with torch.no_grad():
        family.run_body(model, batch)
    for hook in hooks:
        hook.remove()
    real = (batch.segment_ids > 0).flatten().numpy()
    states = [each[0] if isinstance(each, tuple) else each for each in after]
    return tuple(  # pyright: ignore[reportReturnType]
        [each.double().numpy().reshape(len(real), -1)[real] for each in noted]
        for noted in (states, reads)
    )


@pytest.mark.parametrize("family", FITTED)
def test_each_projection_is_the_ridge_solution(family, tiny_model, text_for):
    """Layer by layer, on the inputs that the layers before it give, by a float64 least-squares
    solver; the layer before the first gap reads what it always did. Padding does not count."""
    teacher = tiny_model(family, num_layers=5)
    text = text_for(teacher)
    student, kept, _ = cut(teacher, text, layer_map=[0, 2, 4])
    own, name = copy.deepcopy(student), output_projection(teacher.config)
    assert name is not None
    errors = reconstruct(teacher, student, kept, text).errors
    theirs, _ = recorded(teacher, text, name)
    layers = family_of(own.config).layers_of(own)
    solved = family_of(student.config).layers_of(student)
    for number, aim in enumerate([theirs[1], theirs[3], theirs[4]]):
        states, reads = recorded(own, text, name)
        weights = 1 / np.sqrt(np.mean(aim**2, axis=1, keepdims=True))
        x, y = reads[number] * weights, (aim - states[number]) * weights
        assert errors[number][0] == pytest.approx(np.sqrt(np.mean(y**2)), rel=1e-4)
        ridge = np.sqrt(RIDGE * np.mean(np.sum(x**2, axis=0)))
        stacked = np.concatenate([x, ridge * np.eye(x.shape[1])])
        wanted = np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))])
        change = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
        assert errors[number][1] == pytest.approx(np.sqrt(np.mean((y - x @ change) ** 2)), rel=1e-3)
        weight = layers[number].get_parameter(f"{name}.weight")
        before = weight.detach().clone()
        after = solved[number].get_parameter(f"{name}.weight")
        change = torch.from_numpy(change).float()
        turned = change if family == "gpt2" else change.T
        torch.testing.assert_close(after, before + turned, atol=2e-4, rtol=2e-3)
        with torch.no_grad():
            weight.copy_(after)


@pytest.mark.parametrize("family", FITTED)
def test_a_student_that_is_its_teacher_is_left_as_it_is(family, tiny_model, text_for):
    """Every weight to the bit; and of a cut student all but the projections."""
    teacher = tiny_model(family, num_layers=3)
    text = text_for(teacher)
    student, kept, _ = cut(teacher, text, layer_map=[0, 1, 2])
    before = copy.deepcopy(student.state_dict())
    assert reconstruct(teacher, student, kept, text).errors == [(0, 0)] * 3
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    student, kept, _ = cut(teacher, text, layer_map=[0, 2])
    before = copy.deepcopy(student.state_dict())
    found = reconstruct(teacher, student, kept, text)
    after = student.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        *found.weights
    }


@pytest.mark.parametrize(
    "shape",
    [
        {"layer_map": [0, 1, 3]},
        {"layer_map": [0, 1, 2, 3], "feed_forward_size": 40},
        {"layer_map": [1, 2], "hidden_size": 12},
    ],
)
def test_a_cut_student_comes_nearer_to_its_teacher(shape, tiny_model, text_for):
    """Its hidden states do, whatever was cut; of a smaller hidden size those that it keeps."""
    teacher = tiny_model("llama", num_layers=4)
    text = text_for(teacher)
    student, kept, hidden = cut(teacher, text, **shape)
    name = "mlp.down_proj"
    channels = hidden or [*range(16)]

    def error() -> float:
        aim, own = (recorded(model, text, name)[0][-1] for model in (teacher, student))
        return float(np.sqrt(np.mean((aim[:, channels] - own) ** 2)))

    before = error()
    found = reconstruct(teacher, student, kept, text, hidden=hidden)
    assert error() < 0.9 * before
    assert all(after <= before for before, after in found.errors)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_that_can_be_fitted_are_linear_in_their_projection(family, tiny_model):
    """y(W) - y(0) = y(2 W) - y(W), with the module that is found; where none is, no module of the
    layer has this but before a norm, and the family is refused by name."""
    config = make_config(family)
    name = output_projection(config)
    if name is None:
        with pytest.raises(RecipeError, match=f"layers of a {config.model_type} model end in a no"):
            check_reconstruction(config, [0])
        norms = [
            module
            for module in empty_model(with_layers(config, [0])).modules()
            if "Norm" in type(module).__name__
        ]
        assert norms
        return
    model = tiny_model(family).double()
    weight = family_of(config).layers_of(model)[-1].get_parameter(f"{name}.weight")
    given = weight.detach().clone()
    outputs = []
    family_of(config).layers_of(model)[-1].register_forward_hook(
        lambda *each: outputs.append(each[-1][0] if isinstance(each[-1], tuple) else each[-1])
    )
    with torch.no_grad():
        for factor in (0, 1, 2):
            weight.copy_(factor * given)
            model(input_ids=torch.tensor([[5, 7, 9, 11]]))
    none, once, twice = outputs
    torch.testing.assert_close(once - none, twice - once)
    assert not torch.equal(once, none)


@pytest.mark.parametrize("layer_map", [[2, 0], [1, 1]])
def test_layers_out_of_order_are_refused(layer_map):
    """No place of the teacher is the one between them."""
    message = re.escape(f"layer_map {layer_map} is not in the teacher's order")
    with pytest.raises(RecipeError, match=message):
        check_reconstruction(make_config("llama", 3), layer_map)


def test_other_weights_than_the_teachers_are_refused():
    """The two settings contradict each other."""
    with pytest.raises(ValueError, match="leave out weights or reconstruct"):
        StudentRecipe(weights="random", reconstruct=True)


def test_hidden_states_that_are_not_finite_are_refused(tiny_model, text_for):
    """Rather than written into the student."""
    teacher = tiny_model("llama", num_layers=3)
    text = text_for(teacher)
    student, kept, _ = cut(teacher, text, layer_map=[0, 2])
    with torch.no_grad():
        teacher.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="are not finite on the text of student"):
        reconstruct(teacher, student, kept, text)
