"""What the Inspect tab asks of its server."""

import pytest
from starlette.testclient import TestClient
from tests.serving.conftest import URL, application

from stillhouse.errors import RecipeError, RunError
from stillhouse.inference.load import language_model
from stillhouse.inspection.collect import CollectRequest, collect
from stillhouse.models.load import save_model
from stillhouse.serving.config import ServerConfig
from stillhouse.serving.server import find_inspections
from stillhouse.stages.context import folder_fingerprint
from stillhouse.training.progress import QuietReporter


@pytest.fixture
def inspected(tmp_path, tiny_model, tiny_tokenizer):
    """The folders of a tiny model and of its neurons."""
    tiny_tokenizer.eos_token = "[SEP]"
    model = tiny_model("gpt2")
    save_model(model, tiny_tokenizer, tmp_path / "tiny")
    (tmp_path / "words.txt").write_text("w7 w8 w11 w9 w30 " * 30)
    request = CollectRequest(
        folder_fingerprint(tmp_path / "tiny"), str(tmp_path / "words.txt"), 120
    )
    model.num_tokens = 60
    collect(language_model(model, tiny_tokenizer), tmp_path / "neurons", request, QuietReporter())
    return tmp_path / "tiny", tmp_path / "neurons"


def test_a_neuron_of_a_served_model(inspected):
    """The page is offered the strongest of each layer; one that is not there is refused."""
    model, neurons = inspected
    app = application((str(model),), with_editor=True, inspections=(neurons,))
    with TestClient(app, base_url=URL) as http:
        (listed,) = http.get("/editor/models").json()["models"]
        assert [row["layer"] for row in listed["inspected_layers"]] == [0, 1]
        layer, number = map(int, listed["inspected_layers"][1]["strongest"].split("."))
        asked = {"model": "tiny", "layer": layer, "number": number}
        found = http.post("/editor/neuron", json=asked).json()
        assert (found["neuron"], len(found["contexts"])) == (f"1.{number}", 10)
        refused = http.post("/editor/neuron", json={**asked, "number": 64})
        assert (refused.status_code, "no neuron 1.64" in refused.text) == (400, True)
        found = http.post("/editor/layers", json={"model": "tiny", "text": "w7 w8"}).json()
        assert [len(found["tokens"]), len(found["layers"])] == [3, 2]
        refused = http.post("/editor/layers", json={"model": "tiny", "text": ""})
        assert (refused.status_code, "has 0 tokens" in refused.text) == (400, True)


def test_a_model_without_neurons_names_the_command(http):
    answer = http.post("/editor/neuron", json={"model": "sample", "layer": 0, "number": 0})
    assert answer.status_code == 404
    assert "Collect them with `stillhouse inspect`" in answer.json()["error"]


def test_folders_of_other_models_are_refused(inspected, tmp_path):
    model, neurons = inspected
    config = ServerConfig(("sample",), inspections=(neurons,))
    with pytest.raises(RecipeError, match="the neurons of none of the models: sample"):
        find_inspections(config)
    with pytest.raises(RunError, match="not a folder of `stillhouse inspect`"):
        find_inspections(ServerConfig((str(model),), inspections=(tmp_path,)))
