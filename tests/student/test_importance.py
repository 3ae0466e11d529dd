"""Which layers matter: the scores against plain formulas, and the choice against trying it out."""

import itertools

import numpy as np
import pytest
import torch
from tests.tiny_models import VOCABULARY
from tokenizers import normalizers
from torch import nn
from transformers import BertConfig, LlamaConfig

from stillhouse.errors import DataError, RecipeError
from stillhouse.families.registry import FAMILIES, family_of
from stillhouse.student.calibration import (
    Calibration,
    check_text,
    read_calibration,
    sequence_length_of,
)
from stillhouse.student.importance import block_influence, choose_layers, loss_on
from stillhouse.student.settings import ImportanceRecipe, LayerChoice
from stillhouse.tokens.packing import pack
from stillhouse.tokens.settings import TokensRecipe
from stillhouse.tokens.shards import TokenSplit


def states_of(model, text) -> list[np.ndarray]:
    """The input of each layer and the output of the last in float64, of real positions alone."""
    family, batches = family_of(model.config), list(text.batches())
    layers, seen = family.layers_of(model), []

    def before(_, args, named):
        seen.append(args[0] if args else named["hidden_states"])

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(lambda *given: seen.append(given[-1])))
    with torch.no_grad():
        for batch in batches:
            family.run_body(model, batch)
    for hook in hooks:
        hook.remove()
    real = np.concatenate([(batch.segment_ids > 0).numpy() for batch in batches])
    size = len(layers) + 1
    return [torch.cat(seen[place::size]).double().numpy()[real] for place in range(size)]


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_block_influence_is_one_minus_the_mean_cosine(family, tiny_model, text_for):
    """In float64 from the states before and after each layer; padding does not count."""
    model = tiny_model(family, num_layers=3)
    text = text_for(model)
    states = states_of(model, text)
    expected = []
    for before, after in itertools.pairwise(states):
        norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
        expected.append(1 - float(np.mean((before * after).sum(-1) / norms)))
    found = block_influence(family_of(model.config), model, text)
    assert found == pytest.approx(expected, abs=1e-6)


def silence(layer: nn.Module) -> None:
    """Make a layer of a pre-norm model leave its input as it is."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if any(part in name for part in ("o_proj", "down_proj", "c_proj")):
                parameter.zero_()


@pytest.mark.parametrize("by", ["influence", "greedy"])
def test_a_layer_that_does_nothing_scores_zero(by, tiny_model, text_for):
    """It does not turn its input, and predictions without it are the same: it is dropped first."""
    model = tiny_model("llama", num_layers=4)
    own = family_of(model.config)
    silence(own.layers_of(model)[2])
    found = choose_layers(LayerChoice(layers=3, by=by), own, model, text_for(model))
    assert found.scores[2] == pytest.approx(0, abs=1e-6)
    assert min(abs(score) for score in (*found.scores[:2], found.scores[3])) > 1e-3
    assert (found.kept, found.dropped) == ([0, 1, 3], [2])


def test_scoring_leaves_the_model_as_it_was(tiny_model, text_for):
    """No hook and no replaced layer stays behind."""
    model = tiny_model("llama", num_layers=3)
    own, text = family_of(model.config), text_for(model)
    before = loss_on(own, model, text)
    choose_layers(LayerChoice(layers=1, by="greedy"), own, model, text)
    assert loss_on(own, model, text) == before
    assert not any("forward" in vars(layer) for layer in own.layers_of(model))


def test_sequences_are_spread_over_the_whole_text(words, tiny_tokenizer):
    """Half of the tokens are every second sequence, not the first half of the text."""
    tiny_tokenizer.eos_token = "[SEP]"
    tokens = TokensRecipe(sequence_length=10)
    split = TokenSplit.in_memory([np.array(words(80))], VOCABULARY)
    found = Calibration(pack(split, tiny_tokenizer, tokens), 40)
    assert found.sequences.tolist() == [0, 2, 4, 6]
    assert found.num_tokens == 40


def test_a_text_file_is_read_as_the_tokenizer_reads_it(tmp_path, tiny_tokenizer):
    """The document start comes first, then the text's own tokens."""
    tiny_tokenizer.eos_token = "[SEP]"
    (tmp_path / "text.txt").write_text("w7 w8 w9 " * 9)
    tokens = TokensRecipe(sequence_length=10)
    recipe = ImportanceRecipe(text=str(tmp_path / "text.txt"), tokens=20)
    found = read_calibration(recipe, tokens, tiny_tokenizer, key="--text", offline=True)
    ids = next(found.batches()).input_ids
    assert ids[0].tolist() == [3, 7, 8, 9, 7, 8, 9, 7, 8, 9]
    assert found.num_tokens == 20


def test_a_text_that_is_not_there_is_refused_by_its_key(tmp_path):
    """Before the run, not after the teacher was trained."""
    importance = ImportanceRecipe(text=str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match=r"student\.importance\.text.*none\.txt"):
        check_text(importance, LlamaConfig(), offline=True)


def test_sequences_that_the_teacher_does_not_take_are_refused():
    """By default they are as long as it takes, up to 1,024 tokens."""
    with pytest.raises(RecipeError, match=r"importance\.sequence_length is 2,000, .* at most 512"):
        sequence_length_of(ImportanceRecipe(sequence_length=2_000), BertConfig())
    assert sequence_length_of(ImportanceRecipe(), BertConfig()) == 512
    assert sequence_length_of(ImportanceRecipe(), LlamaConfig()) == 1_024


def test_a_text_without_tokens_is_refused(tmp_path, tiny_tokenizer):
    """Such as one of characters that the tokenizer drops."""
    tiny_tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    (tmp_path / "text.txt").write_text("\u200b\n")
    tokens = TokensRecipe(language_modeling="masked", sequence_length=10)
    recipe = ImportanceRecipe(text=str(tmp_path / "text.txt"))
    with pytest.raises(DataError, match=r"--text .*text\.txt has no tokens"):
        read_calibration(recipe, tokens, tiny_tokenizer, key="--text", offline=True)


@pytest.mark.e2e
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_scored(family, tiny_model, text_for):
    """Both measures run on every architecture, and keep what they are asked for."""
    model = tiny_model(family, num_layers=3)
    for by in ("influence", "greedy"):
        choice = LayerChoice(layers=2, by=by)
        found = choose_layers(choice, family_of(model.config), model, text_for(model))
        assert len(found.scores) == 3
        assert len(found.kept) == 2
