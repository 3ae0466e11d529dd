"""The application around the dialects: its pages, other sites, and padded vocabularies."""

import pytest
from starlette.testclient import TestClient
from tests.serving.conftest import URL, application
from tests.tiny_models import make_config
from transformers import AutoModelForCausalLM

from stillhouse.errors import RecipeError
from stillhouse.models.load import save_model
from stillhouse.serving.config import ServerConfig
from stillhouse.serving.server import create_app
from stillhouse.tokens.tokenizer_training import train_tokenizer

SITE = "https://app.example"
ASKED = {
    "Origin": SITE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
}


@pytest.fixture
def app_with(served_app):
    """app_with(**settings): a client of another application with the same models."""

    def make(**settings):
        config = ServerConfig(models=(), insecure=True, host="0.0.0.0", **settings)
        app = create_app(lambda worker: served_app.state.models, config, wait=True)
        with TestClient(app, base_url=URL) as loaded:
            loaded.get("/health")
        return TestClient(app, base_url=URL)

    return make


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_index_page_lists_routes_without_network_access(app_with, path):
    """Also without the key; nothing of the page is fetched from elsewhere."""
    answer = app_with(api_key="secret").get(path)
    assert answer.status_code == 200
    assert "/v1/chat/completions" in answer.text
    assert "openapi.json" in answer.text
    assert "https://" not in answer.text
    assert "script" not in answer.text
    assert "sample" not in answer.text, "the models' names need the key"


def test_cors_is_disabled_by_default(app_with):
    plain = app_with()
    assert plain.options("/v1/completions", headers=ASKED).status_code == 405
    answer = plain.get("/health", headers={"Origin": SITE})
    assert "access-control-allow-origin" not in answer.headers


def test_cors_allows_configured_origin(app_with):
    """Before it sends its key, too, and of what is refused."""
    client = app_with(api_key="secret", cors_origins=(SITE,))
    asked = client.options("/v1/completions", headers=ASKED)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == SITE
    refused = client.post("/v1/completions", json={}, headers={"Origin": SITE})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == SITE
    other = {"Origin": "https://other.example"}
    assert "access-control-allow-origin" not in client.get("/health", headers=other).headers


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/path", "file://x", ""])
def test_invalid_cors_origin_is_rejected(origin):
    with pytest.raises(RecipeError, match="give the scheme, host and port"):
        ServerConfig(models=("sample",), cors_origins=(origin,))


def test_padded_vocabulary_rows_are_never_generated_or_listed(tmp_path):
    """A model of 512 rows for 300 tokens: no padding is drawn, and none is listed."""
    text = "The still turns what is thin into what is strong, drop by drop, and then once more. "
    tokenizer = train_tokenizer("byte_bpe", 300, iter([text * 3]), "causal")
    config = make_config("gpt2", 2, vocabulary=512, positions=64)
    config.initializer_range = 0.5
    save_model(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path / "padded")
    names = set(map(tokenizer.decode, range(300))) | set(tokenizer.get_vocab())
    with TestClient(application((str(tmp_path / "padded"),)), base_url=URL) as client:
        for seed in range(4):
            body = {"prompt": text, "max_tokens": 12, "seed": seed, "logprobs": 20, "n": 2}
            answer = client.post("/v1/completions", json=body)
            assert answer.status_code == 200
            for choice in answer.json()["choices"]:
                assert {*choice["logprobs"]["tokens"]} <= names
                for top_logprobs in choice["logprobs"]["top_logprobs"]:
                    assert {*top_logprobs} <= names
        refused = client.post("/v1/completions", json={"prompt": [5, 300]})
        assert refused.status_code == 400
        assert "they go from 0 to 299" in refused.json()["error"]["message"]
