"""What the stage init checks before anything runs."""

from types import SimpleNamespace
from typing import Any

import pytest
from tests.tiny_models import make_config

from stillhouse.errors import DataError
from stillhouse.student.settings import StudentRecipe
from stillhouse.student.stage import check


@pytest.mark.parametrize(
    ("shape", "needs_text"),
    [
        ({"layer_map": 1}, True),
        ({"layer_map": {"layers": 1, "by": "even"}}, False),
        ({"layer_map": [0]}, False),
        ({"layer_map": [0], "feed_forward_size": 8}, True),
        ({"layer_map": 1, "weights": "random"}, False),
    ],
)
def test_the_text_of_the_scores_must_be_there_where_something_is_scored(
    shape, needs_text, tmp_path
):
    """A recipe that names its layers needs no text."""
    importance = {"text": str(tmp_path / "none.txt")}
    student = StudentRecipe.model_validate({**shape, "importance": importance})
    given: Any = SimpleNamespace(
        recipe=SimpleNamespace(student=student),
        teacher=make_config("llama", num_layers=2),
        candidates=(),
        runs=lambda *_: True,
        offline=True,
    )
    if needs_text:
        with pytest.raises(DataError, match=r"student\.importance\.text.*none\.txt"):
            check(given)
    else:
        check(given)
        assert len(given.student.layer_map) == 1
