"""End tokens are a set, read from both files of a model folder, and kept by everything that saves
one."""

import json
from pathlib import Path
from typing import cast

import pytest
import torch
from tests.task_models import make_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import stillhouse
from stillhouse.errors import ModelError
from stillhouse.inference.reference import greedy_tokens
from stillhouse.models.folder_check import load_config
from stillhouse.models.load import load_model, save_model
from stillhouse.models.special_ids import (
    end_token_ids,
    padding_id,
    take_generation_config,
    without_generation_defaults,
)
from stillhouse.models.task_models import task_model_with_num_layers
from stillhouse.tokens.tokenizer_training import train_tokenizer

CASES = [
    (0, {"eos_token_id": [0, 40]}, {0, 40}),
    (0, {"eos_token_id": 7}, {0, 7}),
    (0, {}, {0}),
    ([0, 5], {}, {0, 5}),
    ([0, 5], {"eos_token_id": [5, 9]}, {0, 5, 9}),
    (None, {"eos_token_id": [3]}, {3}),
    (None, {"eos_token_id": None}, set()),
    (None, None, set()),
    (6, None, {6}),
]


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_tokenizer) -> Path:
    save_model(tiny_model("gpt2"), tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


def set_end_tokens(folder: Path, config, generation: dict | None) -> None:
    """Write both files; None: without a generation_config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": config}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))


@pytest.mark.parametrize(("config", "generation", "expected"), CASES)
def test_end_tokens_are_the_union_of_both_files(folder, config, generation, expected):
    """A number, a list or null in either of them; the folder and its loaded model agree."""
    set_end_tokens(folder, config, generation)
    assert end_token_ids(folder) == expected
    assert end_token_ids(load_model(folder)[1]) == expected


@pytest.mark.parametrize(("config", "generation", "expected"), CASES)
def test_a_saved_model_keeps_its_end_tokens_in_both_files(
    folder, tmp_path, tiny_tokenizer, config, generation, expected
):
    """Programs that read one file alone stop where those that read the other one do."""
    set_end_tokens(folder, config, generation)
    save_model(load_model(folder)[1], tiny_tokenizer, tmp_path / "again")
    for name in ("config.json", "generation_config.json"):
        found = json.loads((tmp_path / "again" / name).read_text())["eos_token_id"]
        assert set(found if isinstance(found, list) else [found] if found is not None else []) == (
            expected
        )
    assert end_token_ids(tmp_path / "again") == expected


def test_sampling_defaults_of_a_teacher_are_kept(folder, tmp_path, tiny_tokenizer):
    """Even those that transformers refuses to save once anything beside them has changed."""
    defaults = {"eos_token_id": [0, 9], "temperature": 0.6, "top_p": 0.9, "pad_token_id": 3}
    set_end_tokens(folder, 0, defaults)
    student = GPT2LMHeadModel(cast("GPT2Config", load_config(folder)))
    take_generation_config(student, folder)
    save_model(student, tiny_tokenizer, tmp_path / "student")
    found = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert found.items() >= defaults.items()
    with_num_layers = task_model_with_num_layers(load_model(tmp_path / "student")[1], [0])
    save_model(with_num_layers, tiny_tokenizer, tmp_path / "shallower")
    found = json.loads((tmp_path / "shallower" / "generation_config.json").read_text())
    assert found.items() >= defaults.items()


def test_generation_defaults_of_a_folder_do_not_change_what_was_asked_for(folder):
    """Greedy text is the most likely, whatever penalties `generation_config.json` holds."""
    plain = greedy_tokens(load_model(folder)[1], [7, 8], 12)
    set_end_tokens(folder, 0, {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1})
    model = load_model(folder)[1]
    assert greedy_tokens(model, [7, 8], 12) == plain
    assert model.generation_config.repetition_penalty == 5.0
    with without_generation_defaults(model):
        assert model.generation_config.eos_token_id == 0


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": [-1]}'])
def test_a_damaged_generation_config_is_named(folder, content):
    """transformers passes over it in silence, and the text would never end."""
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        load_model(folder)


def test_padding_takes_the_token_that_is_there():
    """The padding token, else one that ends a text, else any."""
    assert padding_id(GPT2Config(pad_token_id=4, eos_token_id=[6, 5])) == 4
    assert padding_id(GPT2Config(pad_token_id=None, eos_token_id=[6, 5])) == 6
    assert padding_id(GPT2Config(pad_token_id=None, eos_token_id=None)) == 0


class TestGeneration:
    """A model that always says the same three tokens, one after the other."""

    @pytest.fixture(scope="class")
    @staticmethod
    def cycle(tmp_path_factory) -> Path:
        """After token n comes n + 1."""
        tokenizer = train_tokenizer("byte_bpe", 263, iter(["ab cd ef " * 50]), "causal")
        size = len(tokenizer)
        config = GPT2Config(
            vocab_size=size, n_positions=32, n_embd=size, n_layer=1, n_head=1, eos_token_id=0,
            bos_token_id=0, tie_word_embeddings=False,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            model.transformer.ln_f.weight.fill_(1.0)
            model.transformer.wte.weight.copy_(torch.eye(size))
            model.lm_head.weight.copy_(torch.eye(size).roll(1, 0))
        folder = tmp_path_factory.mktemp("cycle")
        save_model(model, tokenizer, folder)
        return folder

    @pytest.mark.parametrize(
        ("config", "generation"),
        [(0, {"eos_token_id": [0, 70]}), ([0, 70], {}), (70, None), (None, {"eos_token_id": 70})],
    )
    @pytest.mark.parametrize("num_beams", [1, 2])
    def test_each_end_token_stops_the_text(self, cycle, config, generation, num_beams):
        """Wherever it is named; by sampling and by beam search."""
        set_end_tokens(cycle, config, generation)
        loaded = stillhouse.load(cycle)
        prompt = loaded.decode([66])
        (text,) = loaded.generate(prompt, greedy=True, num_beams=num_beams, max_new_tokens=9)
        assert text == loaded.decode([66, 67, 68, 69])

    def test_a_model_without_end_tokens_writes_on(self, cycle):
        """As many tokens as were asked for, by both ways, and after an empty prompt too."""
        set_end_tokens(cycle, None, None)
        loaded = stillhouse.load(cycle)
        assert loaded.generate("", greedy=True, max_new_tokens=4) == [loaded.decode([1, 2, 3, 4])]
        prompt = loaded.decode([66])
        for num_beams in (1, 2):
            (text,) = loaded.generate(prompt, greedy=True, num_beams=num_beams, max_new_tokens=6)
            assert text == loaded.decode(range(66, 73))


@pytest.mark.parametrize(
    ("pad", "end", "found"), [(-1, 7, 7), (10**6, [10**6, 8], 8), (None, None, 0), (-1, -1, 0)]
)
def test_padding_is_a_token_that_there_is(pad, end, found):
    """Published configurations have -1, or the number of a larger vocabulary."""
    config = GPT2Config(vocab_size=60, pad_token_id=pad)
    config.eos_token_id = end
    assert padding_id(config) == found


def test_a_generation_config_that_cannot_be_used_is_named(folder):
    """Not the weights, which it was read with."""
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": "5"}))
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be used"):
        stillhouse.load(folder)


def test_what_is_not_followed_in_a_generation_config_is_said(folder):
    """transformers' generate() never draws these tokens; sampling settings are the caller's."""
    settings = {"suppress_tokens": [5, 6], "forced_eos_token_id": None, "temperature": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(settings | {"do_sample": True}))
    with pytest.warns(match="asks for suppress_tokens, which Stillhouse does not follow"):
        stillhouse.load(folder)


def test_end_tokens_outside_the_vocabulary_give_way_to_the_tokenizer_s(tmp_path, tiny_config):
    """As transformers' default 50256 in a small vocabulary: no text would ever end, and an empty
    prompt would begin with it."""
    tokenizer = make_tokenizer("gpt2")
    config = tiny_config("gpt2", vocabulary=len(tokenizer))
    config.bos_token_id = config.eos_token_id = 50256
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = stillhouse.load(tmp_path)
    assert list(loaded.end_ids) == [tokenizer.eos_token_id]
    assert loaded.prompt_ids("") == (tokenizer.eos_token_id,)
