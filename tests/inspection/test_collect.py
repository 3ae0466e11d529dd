"""The pass over a text: what it keeps, how it resumes, what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from stillhouse.errors import RecipeError, RunError
from stillhouse.inspection import collect as collecting
from stillhouse.inspection import text as texts
from stillhouse.inspection.collect import CollectRequest, collect, open_inspection, summary
from stillhouse.training.progress import QuietReporter

FAMILIES = ["gpt2", "llama", "bert", "opt"]


class Killed(BaseException):
    """The process ends."""


class KillingReporter(QuietReporter):
    """Ends the process after a number of batches."""

    def __init__(self, after: int) -> None:
        self.after = after

    def step(self, step: int, values: dict[str, int | float]) -> None:
        if step == self.after:
            raise Killed


@pytest.fixture
def request_for(words_file):
    return CollectRequest("the model", str(words_file), 400)


def _plain(loaded, text) -> torch.Tensor:
    """The neurons of the first layer at the counted positions, by the layer's own modules."""
    layer = loaded.family.layers_of(loaded.model)[0]
    found = []

    def note(_: nn.Module, args: tuple, output: torch.Tensor) -> None:
        found.append(_neurons(loaded.family.model_type, layer, args[0]).flatten(0, -2))

    entry = {"gpt2": "mlp", "llama": "mlp", "bert": "intermediate", "opt": "fc1"}
    module = layer.get_submodule(entry[loaded.family.model_type])
    with torch.inference_mode(), module.register_forward_hook(note):
        for batch, _ in text.batches():
            loaded.family.run_body(loaded.model, batch)
    return torch.cat(found)[text.counted.flatten()]


def _neurons(family: str, layer, states: torch.Tensor) -> torch.Tensor:
    """The formula of each architecture's feed-forward part, up to its last projection."""
    if family == "llama":
        mlp = layer.mlp
        return nn.functional.silu(states @ mlp.gate_proj.weight.T) * (states @ mlp.up_proj.weight.T)
    if family == "gpt2":
        mlp = layer.mlp
        return nn.functional.gelu(states @ mlp.c_fc.weight + mlp.c_fc.bias, approximate="tanh")
    dense = layer.fc1 if family == "opt" else layer.intermediate.dense
    function = nn.functional.relu if family == "opt" else nn.functional.gelu
    return function(states @ dense.weight.T + dense.bias)


@pytest.mark.parametrize("tokens_per_batch", [24, 4_096])
@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_are_what_the_last_projection_reads(
    family, loaded, request_for, tmp_path, monkeypatch, tokens_per_batch
):
    """Of a gated feed-forward part the product; with any size of batches."""
    monkeypatch.setattr(texts, "TOKENS_PER_BATCH", tokens_per_batch)
    model = loaded(family)
    found = collect(model, tmp_path / "out", request_for, QuietReporter())
    plain = _plain(model, found.text).double()
    statistics = found.statistics
    assert statistics.num_rows == len(plain) == found.text.num_counted
    torch.testing.assert_close(statistics.mean[0], plain.mean(0), rtol=1e-5, atol=1e-6)
    spread = plain.var(0, correction=0)
    torch.testing.assert_close(statistics.variance[0], spread, rtol=1e-4, atol=1e-6)
    strongest = plain.abs().amax(0)
    known = statistics.is_context[0, :, 0]
    torch.testing.assert_close(
        statistics.values[0, known, 0].abs().double(), strongest[known], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("after", [1, 3])
def test_a_pass_that_was_killed_resumes_to_the_same_bits(
    loaded, request_for, tmp_path, monkeypatch, after
):
    monkeypatch.setattr(texts, "TOKENS_PER_BATCH", 96)
    monkeypatch.setattr(collecting, "SAVE_SECONDS", -1)
    model = loaded("gpt2")
    with pytest.raises(Killed):
        collect(model, tmp_path / "killed", request_for, KillingReporter(after))
    assert (tmp_path / "killed" / "progress.safetensors").exists()
    assert not (tmp_path / "killed" / "units").exists()
    collect(model, tmp_path / "killed", request_for, QuietReporter())
    collect(model, tmp_path / "whole", request_for, QuietReporter())
    files = [tmp_path / name / "units" / "units.safetensors" for name in ("killed", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "killed" / "progress.safetensors").exists()


def test_a_damaged_progress_is_refused(loaded, request_for, tmp_path, monkeypatch):
    """Also where a single bit has changed."""
    monkeypatch.setattr(texts, "TOKENS_PER_BATCH", 96)
    monkeypatch.setattr(collecting, "SAVE_SECONDS", -1)
    model, progress = loaded("gpt2"), tmp_path / "out" / "progress.safetensors"
    with pytest.raises(Killed):
        collect(model, tmp_path / "out", request_for, KillingReporter(2))
    content = bytearray(progress.read_bytes())
    content[-5] ^= 1
    for damaged in (content, content[:-9]):
        progress.write_bytes(damaged)
        with pytest.raises(RunError, match=r"progress.safetensors is damaged .*Remove it"):
            collect(model, tmp_path / "out", request_for, QuietReporter())


def test_a_folder_is_refused_for_another_model_or_text(loaded, request_for, tmp_path):
    model = loaded("gpt2")
    collect(model, tmp_path / "out", request_for, QuietReporter())
    with pytest.raises(RunError, match="the neurons of another model"):
        collect(model, tmp_path / "out", CollectRequest("another"), QuietReporter())
    other = replace(request_for, tokens=500)
    with pytest.raises(RecipeError, match=r"--tokens is 500, but .* was made with 400"):
        collect(model, tmp_path / "out", other, QuietReporter())
    again = collect(model, tmp_path / "out", CollectRequest("the model"), QuietReporter())
    assert summary(again)["tokens"] == again.statistics.num_rows


def test_a_folder_that_is_damaged_or_not_one_is_refused(loaded, request_for, tmp_path):
    model, out = loaded("gpt2"), tmp_path / "out"
    with pytest.raises(RunError, match="not a folder of `stillhouse inspect`"):
        open_inspection(tmp_path, "the model")
    collect(model, out, request_for, QuietReporter())
    units = out / "units" / "units.safetensors"
    units.write_bytes(units.read_bytes()[:-1] + b"\1")
    with pytest.raises(RunError, match=r"units.safetensors is damaged"):
        open_inspection(out, "the model")


def test_the_layers_are_written_as_json(loaded, request_for, tmp_path):
    found = collect(loaded("llama"), tmp_path / "out", request_for, QuietReporter())
    rows = json.loads((tmp_path / "out" / "units" / "layers.json").read_text())
    assert rows == summary(found)["layers"]
    assert [row["layer"] for row in rows] == [0, 1]
    layer, number = map(int, rows[1]["strongest"].split("."))
    values = found.statistics.values[1, :, 0]
    assert (layer, abs(rows[1]["activation"])) == (1, float(values.abs().max()))
    assert rows[1]["activation"] == float(values[number])
