"""The initial student: which of the teacher's weights it starts from, and that none is lost."""

from typing import Any

import pytest
import torch
from tests.tiny_models import is_causal
from torch import nn
from transformers import PreTrainedModel

from stillhouse.errors import ModelError
from stillhouse.families.registry import FAMILIES, family_of
from stillhouse.models.load import load_model, save_model
from stillhouse.student.initialize import random_student, student_from_folder, student_from_teacher
from stillhouse.student.plan import StudentPlan, plan_student
from stillhouse.student.settings import LayerChoice, StudentRecipe

every_pair = pytest.mark.parametrize(
    ("family", "wanted"),
    [(name, student) for name, each in FAMILIES.items() for student in each.student_mappings],
)


def plan_for(teacher: PreTrainedModel, layer_map: int | list[int], family=None) -> StudentPlan:
    """A number of layers is spread evenly."""
    wanted = layer_map if isinstance(layer_map, list) else LayerChoice(layers=layer_map, by="even")
    return plan_student(teacher.config, StudentRecipe(layer_map=wanted, family=family))


@every_pair
def test_a_student_with_all_layers_is_its_teacher(family, wanted, tiny_model, words):
    """Identical logits: for DistilBERT too, whose positions carry BERT's token type 0."""
    teacher = tiny_model(family, num_layers=3)
    student = student_from_teacher(teacher, plan_for(teacher, 3, wanted))
    ids = torch.tensor([words(10), words(10, seed=1)])
    with torch.no_grad():
        torch.testing.assert_close(
            student(input_ids=ids).logits, teacher(input_ids=ids).logits, atol=1e-5, rtol=1e-5
        )


@every_pair
def test_each_layer_computes_what_its_teacher_layer_does(family, wanted, tiny_model, words):
    """Student layer i gives the output of teacher layer layer_map[i], for any input."""
    teacher = tiny_model(family, num_layers=4)
    layer_map = [0, 3, 1] if family_of(teacher.config).first_layer_differs else [3, 0, 3]
    student = student_from_teacher(teacher, plan_for(teacher, layer_map, wanted))
    ours = student.get_submodule(family_of(student.config).layers)
    theirs = teacher.get_submodule(family_of(teacher.config).layers)
    assert len(list(ours.children())) == 3
    hidden = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(2))
    given: dict[nn.Module, Any] = {}  # beside hidden states: angles, a mask, relative positions

    def note(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given.setdefault(layer, (args[1:], named))

    for layer in (*ours.children(), *theirs.children()):
        layer.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        for model in (student, teacher):
            cache = {"use_cache": False} if is_causal(family) else {}
            model(input_ids=torch.tensor([words(5)]), **cache)
        for new, old in enumerate(layer_map):
            pair = []
            for layer in (ours.get_submodule(str(new)), theirs.get_submodule(str(old))):
                args, named = given[layer]
                named.pop("hidden_states", None)
                pair.append(layer(hidden, *args, **named))
            one, other = (out[0] if isinstance(out, tuple) else out for out in pair)
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@every_pair
def test_what_surrounds_the_layers_is_carried(family, wanted, tiny_model):
    """Given the same last hidden states, the student's whole head gives the teacher's logits.

    The 2019 script left the masked models' transform behind and shifted no one's word vectors.
    """
    teacher = tiny_model(family, num_layers=4)
    student = student_from_teacher(teacher, plan_for(teacher, 2, wanted))
    ours, theirs = family_of(student.config), family_of(teacher.config)
    shifted = family == "bert" and wanted == "distilbert"  # positions carry token type 0
    for name in set(ours.embeddings) - ({"position_embeddings"} if shifted else set()):
        assert torch.equal(
            student.get_parameter(ours.embeddings[name]),
            teacher.get_parameter(theirs.embeddings[name]),
        )
    hidden = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    head, teacher_head = ours.head(student), theirs.head(teacher)
    with torch.no_grad():
        one, other = (part.transform(hidden) @ part.weight.T for part in (head, teacher_head))
        torch.testing.assert_close(one, other)
    assert (head.bias is None) == (teacher_head.bias is None) == is_causal(family)
    if head.bias is not None and teacher_head.bias is not None:
        assert torch.equal(head.bias, teacher_head.bias)
    if wanted == family:
        for name, parameter in student.named_parameters():
            if not name.startswith(f"{ours.layers}."):
                assert torch.equal(teacher.get_parameter(name), parameter), name


def test_the_student_shares_no_memory_with_its_teacher(tiny_model):
    """Training the one must not move the other."""
    teacher = tiny_model("gpt2")
    student = student_from_teacher(teacher, plan_for(teacher, 1))
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.named_parameters())


def test_a_random_student_follows_from_the_seed_alone(tiny_model):
    """Same seed, same weights; another seed, others; the teacher's never."""
    teacher = tiny_model("bert")
    plan = plan_for(teacher, 2)
    first, again, other = (
        random_student(plan, seed).get_parameter("vocab_transform.weight") for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(
        first, teacher.get_parameter("cls.predictions.transform.dense.weight")
    )


def test_a_student_goes_on_from_a_folder(tmp_path, tiny_model, tiny_tokenizer):
    """Its weights are those of the folder."""
    teacher = tiny_model("gpt2", num_layers=4)
    plan = plan_for(teacher, 2)
    start = tiny_model("gpt2", num_layers=2, seed=5)
    save_model(start, tiny_tokenizer, tmp_path)
    student = student_from_folder(tmp_path, plan)
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, start.get_parameter(name)), name


def test_a_folder_of_another_shape_is_refused(tmp_path, tiny_model, tiny_tokenizer):
    """Three layers are not two; the error names a parameter that differs."""
    teacher = tiny_model("gpt2", num_layers=4)
    save_model(tiny_model("gpt2", num_layers=3), tiny_tokenizer, tmp_path)
    with pytest.raises(
        ModelError, match=r"not the student this recipe describes.*transformer\.h\.2"
    ):
        student_from_folder(tmp_path, plan_for(teacher, 2))


def test_a_folder_that_is_not_there_is_refused(tmp_path, tiny_model):
    """A misspelt `teacher` is neither teacher, random nor a folder."""
    with pytest.raises(ModelError, match="neither teacher, random nor a folder"):
        student_from_folder(tmp_path / "teahcer", plan_for(tiny_model("gpt2"), 1))


@every_pair
def test_an_initial_student_is_complete_on_disk(
    family, wanted, tiny_model, tiny_tokenizer, tmp_path
):
    """Saved and loaded again, it is the same model: nothing is missing, tied or left behind."""
    teacher = tiny_model(family, num_layers=4)
    student = student_from_teacher(teacher, plan_for(teacher, 2, wanted))
    save_model(student, tiny_tokenizer, tmp_path)
    _, loaded = load_model(tmp_path)
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name
