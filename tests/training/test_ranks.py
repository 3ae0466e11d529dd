"""A rank that is lost: the others end with one error, wherever they notice it."""

import pytest

from stillhouse.errors import TrainingError
from stillhouse.training import ranks

READ_ERROR = "gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]: Connection reset by peer."


@pytest.fixture
def two_ranks(monkeypatch):
    """This process as one of two that have found each other."""
    for name in ranks.LAUNCHERS_VARIABLES:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "_meet", lambda backend: ranks.Ranks())


def test_a_lost_rank_is_explained_wherever_it_is_noticed(two_ranks):
    """Also outside of the steps of a training, such as in the gathering of its weights."""
    with (
        pytest.raises(TrainingError, match=r"Another rank was lost, .*Connection reset by peer"),
        ranks.init_distributed(),
    ):
        raise RuntimeError(READ_ERROR)


def test_other_errors_pass_as_they_are(two_ranks):
    with pytest.raises(RuntimeError, match="mat1 and mat2"), ranks.init_distributed():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
