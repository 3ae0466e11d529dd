"""Hidden states of two sizes: compared through a projection that is trained with the student."""

import copy
import json

import pytest
import torch
from tests.training.jobs import LENGTH, LOSSES, Silent, make_job, make_model
from torch import nn
from transformers import GPT2LMHeadModel

from stillhouse.errors import RecipeError
from stillhouse.families.registry import family_of
from stillhouse.objectives.language_model import LanguageModelObjective, Teacher
from stillhouse.objectives.projection import add_projection, drop_projection, projection_of
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.training.engine import train, train_and_commit

KEPT = [0, 3, 4, 5, 9, 10, 13, 15]


def narrow_student() -> GPT2LMHeadModel:
    """Half as wide as the teacher of `make_job`."""
    config = copy.deepcopy(make_model(1, seed=1).config)
    config.n_embd, config.n_head = 8, 1
    torch.manual_seed(1)
    return GPT2LMHeadModel(config)


def projected_job(folder, **settings):
    job = make_job(folder, model=narrow_student(), **settings)
    add_projection(job.model, make_model(3, seed=0).config, kept=KEPT)
    return job


def weight_of(student) -> nn.Parameter:
    return student.get_parameter("hidden_projection.weight")


@pytest.mark.parametrize("name", ["hidden_mse", "hidden_cosine"])
def test_hidden_states_are_compared_at_the_teachers_size(batch_of, words, name):
    """The loss is that of W h and the teacher's states, computed here from the models' outputs."""
    student, teacher = narrow_student().eval(), make_model(3, seed=0).eval()
    add_projection(student, teacher.config, seed=4)
    ids = [number % 40 for number in words(12)]
    family = family_of(teacher.config)
    losses = LossesRecipe.model_validate({name: {"weight": 1.0}})
    objective = LanguageModelObjective(family, losses, teacher=Teacher(family, teacher))
    batch = batch_of([[ids]], 12, causal=True)
    with torch.no_grad():
        found = objective(student, batch, {name: 1.0})[1][name]
        ours, theirs = (
            model.transformer(torch.tensor([ids])).last_hidden_state[0].double()
            for model in (student, teacher)
        )
    ours = ours @ weight_of(student).double().T
    if name == "hidden_mse":
        expected = ((ours - theirs) ** 2).sum() / 16
    else:
        products = (ours * theirs).sum(1) / ours.norm(dim=1) / theirs.norm(dim=1)
        expected = (1 - products).sum()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_projection_starts_with_kept_channels_in_their_places():
    """What the student has of its teacher is compared with itself; random weights are seeded."""
    student = narrow_student()
    add_projection(student, make_model(1, seed=0).config, kept=KEPT)
    hidden = torch.arange(1.0, 9.0)
    expected = torch.zeros(16)
    expected[KEPT] = hidden
    assert torch.equal(weight_of(student) @ hidden, expected)
    weights = []
    for seed in (1, 1, 2):
        add_projection(student, make_model(1, seed=0).config, seed=seed)
        weights.append(weight_of(student))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_states_of_one_size_are_not_projected():
    """A student as wide as its teacher gets no projection."""
    student = make_model(1, seed=1)
    add_projection(student, make_model(3, seed=0).config)
    assert projection_of(student) is None


def test_sizes_that_differ_without_a_projection_are_refused(tmp_path):
    """In a training loop of one's own; the message says what to call."""
    job = make_job(tmp_path, model=narrow_student())
    batch = job.batches.step(0, slice(0, 1))
    with pytest.raises(RecipeError, match=r"of size 8, .* of size 16\. Call add_projection"):
        job.objective(job.model, batch, {"hidden_cosine": 1.0})


def test_a_projection_is_trained_and_resumed_to_the_bit(tmp_path):
    """Its weights move; after a resume from step 2 they and all losses are those of one run."""
    whole = projected_job(tmp_path / "whole", checkpoint={"every_steps": 2, "keep_last": 9})
    before = weight_of(whole.model).detach().clone()
    train(whole, Silent())
    assert not torch.equal(weight_of(whole.model), before)
    resumed = projected_job(tmp_path / "whole", checkpoint={"every_steps": 2, "keep_last": 9})
    last = max(resumed.checkpoints.committed())
    last.rename(tmp_path / "later")
    train(resumed, Silent())
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name
    lines = [json.loads(line) for line in whole.metrics.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["hidden_cosine"] < lines[0]["hidden_cosine"]


def test_the_student_that_is_committed_has_no_projection(tmp_path):
    """It is a plain model of its architecture."""
    job, committed = projected_job(tmp_path, max_tokens=6 * LENGTH), []
    train_and_commit(job, "the student", Silent(), lambda model, _: committed.append(model))
    names = {name for name, _ in committed[0].named_parameters()}
    assert names == {name for name, _ in narrow_student().named_parameters()}
    drop_projection(job.model)  # there is none left


def test_a_loss_of_logits_alone_is_not_projected(tmp_path):
    """A projection that no term reaches has no gradient and no part in a step."""
    losses = {name: term for name, term in LOSSES.items() if name != "hidden_cosine"}
    job = projected_job(tmp_path, losses=losses)
    batch = job.batches.step(0, slice(0, 2))
    job.objective(job.model, batch, job.objective.weights)[0].backward()
    assert weight_of(job.model).grad is None
