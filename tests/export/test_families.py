"""Every family in every export format: the same outputs in its engine, or refused by name."""

from pathlib import Path
from typing import Any

import pytest
from tests.export.odd_models import format_named, parity_of_exported
from tests.export.test_plain import make_loaded

from stillhouse.export.exported import plain, vocabulary_of
from stillhouse.families.settings import CAUSAL, FAMILY_NAMES, MASKED

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
GGUF = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text")
# Attention windows of the smallest models as llama.cpp computes them.
WINDOWS = {
    "mistral": {"sliding_window": None},
    "phi3": {"sliding_window": None},
    "gemma3_text": {"layer_types": ["sliding_attention"] * 2},
    "qwen2": {"layer_types": ["full_attention"] * 2},
}
CTRANSLATE2 = ("gpt2", "bert", "distilbert", "roberta")
every_family = pytest.mark.parametrize("name", FAMILY_NAMES)


@every_family
def test_export_to_gguf_is_the_model_or_refused(name, tmp_path, record_property):
    check_export("gguf", name, GGUF, tmp_path / "out", record_property)


@every_family
def test_export_to_ctranslate2_is_the_model_or_refused(name, tmp_path, record_property):
    check_export("ctranslate2", name, CTRANSLATE2, tmp_path / "out", record_property)


@every_family
def test_export_to_onnx_is_the_model_or_refused(name, tmp_path, record_property):
    check_export("onnx", name, MASKED, tmp_path / "out", record_property)


def check_export(
    to: str, name: str, supported: tuple[str, ...], folder: Path, record_property: Any
) -> None:
    """Of a tiny random model: written, loaded and compared, as `export` does in float32."""
    loaded = make_loaded(name, **(WINDOWS.get(name, {}) if to == "gguf" else {}))
    exported = plain(loaded, vocabulary_of(name, loaded))
    reason = format_named(to).refusal(exported)
    if name not in supported:
        assert reason
        record_property("refused", reason)
        return
    assert reason is None
    parity, _ = parity_of_exported(exported, to, folder)
    if name in CAUSAL:
        assert parity["same_first_tokens"] == parity["of_generated_tokens"]
        record_property("difference", parity["largest_difference_nats"])
    else:
        record_property("difference", max(parity["relative_error"].values()))
