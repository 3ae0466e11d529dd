"""One neuron: its contexts, and its effects by ablation and by the direct path."""

import pytest
import torch
from tests.inspection.conftest import plant, plant_in_gpt2

from stillhouse.errors import RecipeError
from stillhouse.inspection.collect import CollectRequest, collect
from stillhouse.inspection.neuron import describe_neuron
from stillhouse.inspection.units import Neuron
from stillhouse.training.progress import QuietReporter

LAYER, NEURON, TOKEN, RAISED = 1, 5, 17, 42


@pytest.fixture
def described(loaded, words_file, tmp_path):
    """described(model, neuron): the neuron on the words, and the inspection."""

    def describe(model, neuron: Neuron):
        request = CollectRequest("model", str(words_file), 400)
        inspection = collect(model, tmp_path / "out", request, QuietReporter())
        return describe_neuron(model, inspection, neuron), inspection

    return describe


@pytest.mark.parametrize(("family", "planter"), [("llama", plant), ("gpt2", plant_in_gpt2)])
def test_a_planted_neuron_is_found(family, planter, loaded, tiny_model, described):
    """It fires for one token and raises another: contexts, ablation and direct path say so."""
    model = tiny_model(family, num_layers=3)
    planter(model, LAYER, NEURON, TOKEN, RAISED)
    found, _ = described(loaded(model), Neuron(LAYER, NEURON))
    for context in found["contexts"][:3]:
        assert context["tokens"][context["at"]] == f"w{TOKEN}"
        assert context["activations"][context["at"]] == max(context["activations"])
        assert context["kl"] > 0.01
        assert context["raised"][0][0] == f"w{RAISED}"
    assert found["ablation"]["raised"][0][0] == f"w{RAISED}"
    assert found["direct"]["raised"][0][0] == f"w{RAISED}"


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_ablation_is_the_change_without_what_the_neuron_writes(family, loaded, described):
    """In the last layer, putting the mean in place of an activation adds a multiple of the neuron's
    weights before what follows the projection. Only there, a position's own activation counts."""
    model = loaded(family)
    neuron = Neuron(1, 3)
    found, inspection = described(model, neuron)
    context = found["contexts"][0]
    ids = torch.tensor([model.token_ids.get(text, 0) for text in context["tokens"]])
    name = {"gpt2": "mlp.c_proj", "llama": "mlp.down_proj", "bert": "output.dense"}[family]
    projection = model.family.layers_of(model.model)[-1].get_submodule(name)
    weight = projection.weight[3] if family == "gpt2" else projection.weight[:, 3]
    activations = torch.tensor(context["activations"])
    change = (found["mean"] - activations)[:, None] * weight
    logs = []
    for added in (0, change):
        with (
            torch.inference_mode(),
            projection.register_forward_hook(lambda *given, added=added: given[2] + added),
        ):
            logits = model.model(input_ids=ids[None]).logits[0, context["at"]]
            logs.append(logits.double().log_softmax(0))
    kl = float((logs[0].exp() * (logs[0] - logs[1])).sum())
    assert context["kl"] == pytest.approx(kl, rel=0.01, abs=1e-5)
    assert inspection.statistics.num_rows > 300


def test_a_masked_model_has_no_direct_path(loaded, described):
    found, _ = described(loaded("bert"), Neuron(0, 0))
    assert found["direct"] == {"reason": "the head of a masked model is not linear"}
    assert found["ablation"]["raised"]


def test_layers_that_end_in_a_norm_have_no_direct_path(loaded, described):
    found, _ = described(loaded("gemma2"), Neuron(0, 0))
    assert "a norm lies between" in found["direct"]["reason"]


@torch.no_grad()
def test_the_direct_path_is_the_change_of_the_logits(loaded, described):
    """Of a small step along the neuron's weights, where hidden states are so large and so far from
    it that the norm's denominator stays."""
    model, neuron = loaded("gpt2"), Neuron(1, 3)
    found, _ = described(model, neuron)
    written = model.model.transformer.h[1].mlp.c_proj.weight[3].double()
    written -= written.mean()
    hidden = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden -= hidden.mean() + (hidden @ written) / (written @ written) * written
    body = model.model.transformer.ln_f.double()
    head = model.model.lm_head.weight.double()
    size = hidden.std(correction=0)  # the denominator
    step = head @ (body(hidden + 1e-6 * written) - body(hidden)) * size / 1e-6
    step -= step.mean()
    text, change = found["direct"]["raised"][0]
    assert text == model.token_text(int(step.argmax()))
    assert change == pytest.approx(float(step.max()), rel=1e-3)


@pytest.mark.parametrize("text", ["12", "a.b", "-1.2", "1.2.3", ""])
def test_a_neuron_that_is_no_pair_of_numbers_is_refused(text):
    with pytest.raises(RecipeError, match=r"such as 12\.345"):
        Neuron.parse(text)


def test_a_neuron_that_the_model_lacks_is_refused():
    Neuron.parse("1.63").check(2, 64)
    for text in ("2.0", "0.64"):
        with pytest.raises(RecipeError, match=rf"no neuron {text}: .* layers 0 to 1, .* 0 to 63"):
            Neuron.parse(text).check(2, 64)
