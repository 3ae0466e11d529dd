"""The bounds of an export hold to both sides, and the advice fits the precision."""

import re

import numpy as np
import pytest
import torch

import stillhouse
from stillhouse.errors import ModelError
from stillhouse.export.export import Check, _log_probabilities, encoder_inputs, model_outputs
from stillhouse.export.exported import Exported, plain, vocabulary_of

pytestmark = pytest.mark.e2e  # real weights


class Shifted:
    """An engine whose log-probabilities are the model's, moved."""

    activation = None
    end_ids = frozenset({0})

    def __init__(self, exported: Exported, shift: float, one: float = 0) -> None:
        self._exported, self._shift, self._one = exported, shift, one

    def log_probabilities(self, ids):
        found = _log_probabilities(self._exported, ids) + self._shift
        found[7] += self._one
        found[8] -= self._one
        return found.tolist()

    def generate(self, ids, number):
        return [10] * number


@pytest.fixture(scope="module")
def sample() -> Exported:
    loaded = stillhouse.load("sample")
    return plain(loaded, vocabulary_of("sample", loaded))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("shift", [0.05, -0.05], ids=["better", "worse"])
def test_a_better_score_is_as_wrong_as_a_worse_one(sample, precision, shift):
    message = f"the loss of sample changes by {-shift:+.4f} nats a token"
    with pytest.raises(ModelError, match=re.escape(message)):
        Check("sample", "gguf", precision, sample).run(Shifted(sample, shift))


@pytest.mark.parametrize(("precision", "one"), [("fp32", 0.01), ("fp16", 0.1), ("int8", 0.6)])
def test_one_token_that_is_off_is_found_in_an_unchanged_mean(sample, precision, one):
    with pytest.raises(ModelError, match="a log-probability of sample changes by"):
        Check("sample", "gguf", precision, sample).run(Shifted(sample, 0, one))


@pytest.mark.parametrize("shift", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(sample, shift):
    with pytest.raises(ModelError, match="loss of sample"):
        Check("sample", "gguf", "int8", sample).run(Shifted(sample, shift))


@pytest.mark.parametrize(
    ("flags", "setting", "helps"),
    [
        ({"avx2": True}, None, True),
        ({"avx2": True}, "1", False),
        ({"avx2": True, "avx512_vnni": True}, None, False),
        ({"avx2": True, "avx_vnni": True}, None, False),
        ({}, None, False),  # no x86
    ],
)
def test_ctranslate2_on_a_cpu_without_vnni_has_another_remedy(
    sample, monkeypatch, flags, setting, helps
):
    """Its int8 products overflow there, and MKL's do not; in float32 nothing overflows."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    monkeypatch.delenv("CT2_USE_MKL", raising=False)
    if setting is not None:
        monkeypatch.setenv("CT2_USE_MKL", setting)
    for precision in ("int8", "fp16"):
        with pytest.raises(ModelError) as refused:
            Check("sample", "ctranslate2", precision, sample).run(Shifted(sample, 0.05))
        assert ("Set CT2_USE_MKL=1" in str(refused.value)) == (helps and precision == "int8")
        assert str(refused.value).endswith("ake --precision fp32.")


def test_another_text_is_refused_where_it_is_less_likely(sample):
    with pytest.raises(ModelError, match=r"generates another text: after \d tokens"):
        Check("sample", "gguf", "fp32", sample).run(Shifted(sample, 0))


def close_choice(logits: torch.Tensor) -> int:
    """The second most likely token, where it is nearly as likely as the first."""
    values, ids = logits.topk(2)
    return int(ids[1] if values[0] - values[1] < 0.5 else ids[0])


@pytest.mark.parametrize("num_right", [64, 40])
def test_a_token_that_is_wrong_after_a_close_choice_is_found(sample, num_right):
    """A choice between nearly equal tokens is not an error, and excuses none that follows."""

    class Drifting(Shifted):
        def generate(self, ids, number):
            text = list(ids)
            for _ in range(num_right):
                with torch.inference_mode():
                    logits = sample.loaded.model(input_ids=torch.tensor([text])).logits[0, -1]
                text.append(close_choice(logits.index_fill(0, torch.tensor([0]), -torch.inf)))
            return text[len(ids) :] + [10] * (number - num_right)

    check = Check("sample", "gguf", "int8", sample)
    if num_right == 64:
        assert check.run(Drifting(sample, 0))["same_first_tokens"] < 40
    else:
        with pytest.raises(ModelError, match=r"generates another text: after 4\d tokens"):
            check.run(Drifting(sample, 0))


@pytest.mark.parametrize(
    ("precision", "advice"),
    [
        ("fp32", "gguf does not compute this model; take another format."),
        ("fp16", "Take --precision fp32."),
        ("int8", "Take --precision fp32."),
    ],
)
def test_advice_fits_the_precision(sample, precision, advice):
    with pytest.raises(ModelError) as caught:
        Check("sample", "gguf", precision, sample).run(Shifted(sample, 1))
    assert str(caught.value).endswith(advice)


def test_one_row_that_is_off_is_found_among_many():
    """A single token of a batch whose last hidden state is turned around."""
    loaded = stillhouse.load("minilm")
    exported = plain(loaded, vocabulary_of("minilm", loaded))
    right = model_outputs(loaded.model, encoder_inputs(exported))["last_hidden_state"]

    class Engine:
        def outputs(self, inputs):
            found = np.array(right)
            found[3, 2] *= 1 - 0.002
            return {"last_hidden_state": found}

    with pytest.raises(ModelError, match=r"one row of the outputs of minilm differ by 0\.20%"):
        Check("minilm", "onnx", "fp32", exported).run(Engine())
