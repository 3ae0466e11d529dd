"""Several students cut from one teacher, whose parts are scored once."""

import pytest
import torch

from stillhouse.models.load import load_model, save_model
from stillhouse.race.candidates import plan_candidates
from stillhouse.race.cuts import Cuts
from stillhouse.student.importance import block_influence, most_influential
from stillhouse.student.initialize import student_from_teacher
from stillhouse.student.plan import plan_student
from stillhouse.student.settings import BudgetRecipe, StudentRecipe
from stillhouse.student.width import choose_widths


@pytest.mark.e2e
def test_scores_are_measured_once_for_all_candidates(
    tiny_model, text_for, tiny_tokenizer, tmp_path
):
    """The teacher reads the text for its layers and its channels; each candidate is what it would
    be alone."""
    model = tiny_model("llama", num_layers=4)
    text = text_for(model)
    save_model(model, tiny_tokenizer, tmp_path)
    budget = BudgetRecipe(parameters=round(0.8 * model.num_parameters()))
    found = plan_candidates(model.config, StudentRecipe(budget=budget))
    cuts, passes = Cuts(tmp_path, text), []
    cuts.teacher.base_model.register_forward_hook(lambda *_: passes.append(1))
    students = [cuts.student(candidate)[0] for candidate in found]
    assert len(students) > 1
    assert len(passes) <= 4 * len([*text.batches()])
    family, teacher = load_model(tmp_path)
    for candidate, student in zip(found, students, strict=True):
        scores = block_influence(family, teacher, text)
        kept = most_influential(family, scores, candidate.shape["layers"]).kept
        plan = plan_student(teacher.config, candidate.recipe, chosen=kept)
        alone = student_from_teacher(
            teacher, plan, choose_widths(family, teacher, plan.narrow, text)
        )
        assert student.num_parameters() == candidate.num_parameters
        for name, parameter in alone.named_parameters():
            assert torch.equal(student.get_parameter(name), parameter), name
