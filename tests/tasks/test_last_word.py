"""Last-word prediction: log-probabilities equal those of transformers, token by token."""

import json

import pytest
import torch
from transformers import GPT2LMHeadModel

from stillhouse.errors import DataError, ModelError
from stillhouse.inference.load import load_for_task
from stillhouse.tasks.settings import LastWordTask
from stillhouse.tasks.zero_shot import LastWordPrediction

TEXTS = (
    "Who turns the still? The distiller of Islay",
    "A cold wind, a warm fire: nobody asked, but everyone in London",
    "drop by drop, and then once more.",
)


@pytest.fixture
def folder(task_folder):
    return task_folder("gpt2", "CausalLM")


@pytest.fixture
def passages(tmp_path):
    path = tmp_path / "passages.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def test_last_word_probability_is_the_product_over_its_tokens(folder, passages):
    """One text at a time through transformers, in float64 from its logits on."""
    loaded = load_for_task(folder, LastWordTask())
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    examples = loaded.task.read(passages)
    several = 0
    for text, found in zip(TEXTS, loaded.predictions(examples), strict=True):
        before = loaded.tokenizer(text.rpartition(" ")[0])["input_ids"]
        whole = loaded.tokenizer(text)["input_ids"]
        assert whole[: len(before)] == before
        with torch.no_grad():
            logits = model(torch.tensor([whole])).logits[0].double()
        places = range(len(before) - 1, len(whole) - 1)
        several += len(places) > 1
        shares = logits.log_softmax(-1)
        expected = sum(float(shares[place, whole[place + 1]]) for place in places)
        assert found.log_probability == pytest.approx(expected, abs=1e-4)
        top_logprobs = [int(logits[place].argmax()) == whole[place + 1] for place in places]
        assert found.is_greedy == all(top_logprobs)
        assert found.is_last_token_greedy == top_logprobs[-1]
    assert several


def test_last_word_metrics(folder, passages):
    """Each word and each last token by itself; perplexity is that of a word."""
    loaded = load_for_task(folder, LastWordTask())
    examples = loaded.task.read(passages)
    found = loaded.predictions(examples)
    measures = loaded.task.metric_samples(found, examples)
    assert set(measures) == {"last_word", "last_token", "perplexity"}
    nats = torch.tensor([-each.log_probability for each in found], dtype=torch.float64)
    assert measures["perplexity"].value == pytest.approx(float(nats.mean().exp()))
    said = [LastWordPrediction(-1.0, good, True) for good in (True, False, True)]
    measures = loaded.task.metric_samples(said, examples)
    assert measures["last_word"].value == pytest.approx(2 / 3)
    assert measures["last_token"].value == 1.0


def test_long_context_is_truncated_from_the_left(folder, passages):
    """The last word is still predicted, and the text is marked as truncated."""
    loaded = load_for_task(folder, LastWordTask(max_length=12))
    encoded = [each for (each,) in loaded.task.encode(loaded.task.read(passages), loaded.tokenizer)]
    full = load_for_task(folder, LastWordTask())
    whole = [each for (each,) in full.task.encode(full.task.read(passages), full.tokenizer)]
    for cut, one in zip(encoded, whole, strict=True):
        assert len(cut.input_ids) <= 12
        assert cut.is_truncated == (len(one.input_ids) > 12)
        assert cut.input_ids.tolist() == one.input_ids.tolist()[-len(cut.input_ids) :]
        assert cut.output_mask is not None
        assert one.output_mask is not None
        assert cut.output_mask.sum() == min(one.output_mask.sum(), 12)


def test_unusable_examples_and_prompts_are_refused(tmp_path, folder, task_folder):
    """A text of one word; a model that is not causal."""
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "Islay"}\n')
    with pytest.raises(DataError, match="row 1: 'Islay' is one word"):
        load_for_task(folder, LastWordTask()).task.read(path)
    with pytest.raises(ModelError, match="last_word is for causal language models"):
        load_for_task(task_folder("bert", "Body"), LastWordTask())
