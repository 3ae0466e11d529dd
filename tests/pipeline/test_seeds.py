"""Seeds that are added to a run: what the first seed made is kept."""

import json

import pytest

pytestmark = pytest.mark.e2e


def test_a_seed_that_has_run_is_not_trained_again(done):
    """From `seed: 0` to `[0, 1]`: its weights stay, the other seed's are made beside them."""
    before = done.weights()
    outcome = done.call("run", "--set", "seed=[0, 1]")
    assert outcome.code == 0, outcome.err
    weights = done.folder / "seed-0/student/model.safetensors"
    assert not (done.folder / "student").exists()
    assert "the results of seed 0 are now in seed-0/" in outcome.err
    assert "(seed 1): step" in outcome.err
    assert "(seed 0): step" not in outcome.err
    done.copy(done.folder.with_name("copy"))
    weights.parent.rename(done.folder / "student")
    assert done.weights() == before
    summary = json.loads((done.folder / "evaluation.json").read_text(encoding="utf-8"))
    assert summary["seeds"] == [0, 1]
