"""Checkpoints: the whole state, committed whole, refused when damaged or of another recipe."""

import copy
import signal
import time

import pytest
import torch
from torch import nn
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from stillhouse.errors import ResourceError, RunError, TrainingError
from stillhouse.runs.manifest import Inputs
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.progress import Progress
from stillhouse.training.ranks import Ranks, StopRequest
from stillhouse.training.settings import CheckpointRecipe, OptimizerRecipe
from stillhouse.training.step import make_optimizer

INPUTS = Inputs("distill student", {"temperature": 2.0}, {"tokens": "abc"}, 0)


def make(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    return model, make_optimizer(model, OptimizerRecipe())


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoints(tmp_path, said):
    return Checkpoints(tmp_path / "student", INPUTS, CheckpointRecipe(), said.append)


def saved(checkpoints, *steps) -> None:
    """Train to each of the steps and commit there."""
    model, optimizer = make()
    done = 0
    for number in steps:
        for _ in range(number - done):
            step(model, optimizer, done)
            done += 1
        checkpoints.save(model, optimizer, Progress(number, 10 * number, 0.5, 1))
    checkpoints.finish()


def test_training_goes_on_as_if_it_had_not_stopped(checkpoints):
    """Weights and the optimizer's moments come back bit for bit, so the next steps are the same."""
    saved(checkpoints, 3)
    resumed, optimizer = make(seed=1)
    assert checkpoints.load_newest(resumed, optimizer) == Progress(3, 30, 0.5, 1)
    for number in (3, 4):
        step(resumed, optimizer, number)
    uninterrupted, optimizer = make()
    for number in range(5):
        step(uninterrupted, optimizer, number)
    for name, parameter in uninterrupted.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_only_the_last_ones_are_kept(checkpoints):
    """With keep_last 2, the third commit removes the first."""
    saved(checkpoints, 1, 2, 3)
    assert [path.name for path in checkpoints.committed()] == ["step-00000002", "step-00000003"]


def test_no_checkpoint_means_a_fresh_start(checkpoints):
    """Nothing there is no error, and changes nothing."""
    model, optimizer = make()
    before = copy.deepcopy(model.state_dict())
    assert checkpoints.load_newest(model, optimizer) is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "file",
    [
        "model-00001-of-00001.safetensors",
        "optimizer-00001-of-00001.safetensors",
        "state.json",
        "manifest.json",
    ],
)
@pytest.mark.parametrize("damage", ["cut", "remove"])
def test_a_damaged_one_is_moved_aside_and_said(checkpoints, said, file, damage):
    """The newest intact one is taken, and the damaged one is no longer among the committed."""
    saved(checkpoints, 1, 2)
    path = checkpoints.folder / "step-00000002" / file
    path.unlink() if damage == "remove" else path.write_bytes(path.read_bytes()[:-1])
    if file == "manifest.json" and damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    progress = checkpoints.load_newest(*make())
    assert progress is not None
    assert progress.step == 1
    assert [path.name for path in checkpoints.committed()] == ["step-00000001"]
    assert (checkpoints.folder / "damaged-step-00000002").is_dir()
    assert "step-00000002 is damaged and was moved to damaged-step-00000002" in said[0]


def test_without_an_intact_one_nothing_begins_again_by_itself(checkpoints):
    """Work that was committed is not thrown away in silence, however often one tries."""
    saved(checkpoints, 1, 2)
    for folder in checkpoints.committed():
        (folder / "state.json").unlink()
    for _ in range(2):
        with pytest.raises(RunError, match=r"No checkpoint in .* is intact\. To start over"):
            checkpoints.load_newest(*make())
    checkpoints.clear()
    assert checkpoints.load_newest(*make()) is None


def test_another_recipe_is_refused_and_its_checkpoint_kept(checkpoints, said):
    """The message names what changed; the checkpoint stays for the recipe it belongs to."""
    saved(checkpoints, 1)
    changed = Inputs("distill student", {"temperature": 1.0}, {"tokens": "abc"}, 0)
    other = Checkpoints(checkpoints.folder, changed, CheckpointRecipe(), said.append)
    with pytest.raises(RunError, match=r"another recipe \(temperature: 2\.0 -> 1\.0\)"):
        other.load_newest(*make())
    assert checkpoints.load_newest(*make()) == Progress(1, 10, 0.5, 1)


def test_a_checkpoint_of_another_model_is_damaged(checkpoints):
    """A model with other parameters is never half restored."""
    saved(checkpoints, 1)
    torch.manual_seed(3)
    other = nn.Sequential(nn.Linear(4, 4))
    before = other.get_parameter("0.weight").detach().clone()
    with pytest.raises(RunError, match="No checkpoint"):
        checkpoints.load_newest(other, make_optimizer(other, OptimizerRecipe()))
    assert torch.equal(other.get_parameter("0.weight"), before)


def test_every_so_many_steps_one_is_kept(tmp_path, said):
    """`keep_every_steps` spares its multiples; the others go once two newer ones are there."""
    kept = Checkpoints(tmp_path, INPUTS, CheckpointRecipe(keep_every_steps=2), said.append)
    saved(kept, 1, 2, 3, 4, 5)
    assert [path.name[-1] for path in kept.committed()] == ["2", "4", "5"]


def test_no_memory_for_the_copy_is_one_clear_error(checkpoints, monkeypatch):
    """What was committed before stays."""
    saved(checkpoints, 1)

    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr("stillhouse.training.checkpoint.copied", refuse)
    with pytest.raises(ResourceError, match="not enough memory for a copy of the training's state"):
        checkpoints.save(*make(), Progress(2))
    assert len(checkpoints.committed()) == 1


@pytest.mark.parametrize("damage", ["another key", "one key too few"])
def test_another_optimizers_state_is_damaged(checkpoints, damage):
    """It is found before anything is restored, whatever its manifest says."""
    model, optimizer = make()
    step(model, optimizer, 0)
    state = optimizer.state[model.get_parameter("0.weight")]
    moment = state.pop("exp_avg")
    if damage == "another key":
        state["momentum_buffer"] = moment
    checkpoints.save(model, optimizer, Progress(1))
    checkpoints.finish()
    with pytest.raises(RunError, match="No checkpoint in"):
        checkpoints.load_newest(*make())


@pytest.fixture
def two_ranks(tmp_path, said, monkeypatch):
    """Checkpoints of two ranks with parts of their own, as if their model were sharded."""
    monkeypatch.setattr("stillhouse.training.checkpoint.is_sharded", lambda model: True)
    store = HashStore()
    return [
        Checkpoints(tmp_path, INPUTS, CheckpointRecipe(), said.append, ranks=Ranks(rank, 2, store))
        for rank in range(2)
    ]


def test_a_checkpoint_is_committed_when_all_parts_are_there(two_ranks):
    """Not before, however long the second rank takes; then it has every file."""
    first, second = two_ranks
    first.save(*make(), Progress(1))
    time.sleep(0.1)
    assert not first.committed()
    second.save(*make(), Progress(1))
    second.wait()
    first.wait()
    names = sorted(path.name for path in first.committed()[0].glob("*.safetensors"))
    assert names == [
        f"{kind}-0000{number}-of-00002.safetensors"
        for kind in ("model", "optimizer")
        for number in (1, 2)
    ]


def test_a_rank_whose_part_never_comes_is_not_waited_for(two_ranks, monkeypatch):
    """Once a stop is asked for, as the launcher does when a rank is lost."""
    monkeypatch.setattr("stillhouse.training.checkpoint.LONGEST_SHUTDOWN_SECONDS", 0.2)
    first, _ = two_ranks
    stop = StopRequest()
    first.save(*make(), Progress(1), stop)
    time.sleep(0.4)
    first.check()  # without a signal it waits
    stop.signal_number = signal.SIGTERM
    with pytest.raises(TrainingError, match="Another rank was lost, or gave up"):
        first.wait()
    assert not first.committed()
    assert not list(first.folder.glob(".step-*"))


def test_a_first_rank_that_gives_up_is_said_by_the_others(two_ranks):
    """Its folder is removed under them: they report a lost rank, not a missing file."""
    first, second = two_ranks
    first.finish()  # the save before
    second.save(*make(), Progress(1))
    second.ranks.count(f"{second.folder / 'step-00000001'} started", 1)
    with pytest.raises(TrainingError, match="Another rank was lost, or gave up"):
        second.wait()
