"""DeBERTa: what published models have that the smallest configuration of the laws has not."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_models import make_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, DebertaV2ForMaskedLM

from stillhouse.errors import ModelError
from stillhouse.families.registry import family_named
from stillhouse.models.folder_check import load_config
from stillhouse.models.load import check_folder, load_model, save_model
from stillhouse.student.plan import plan_student
from stillhouse.student.settings import StudentRecipe
from stillhouse.training.cost import StepShape, forward_flops

IDS = torch.arange(5, 25)[None]


@pytest.fixture
def published(tmp_path, tiny_tokenizer):
    """A model with the head of the published DeBERTa v3, which reads the word embeddings and whose
    weights have other names, in a folder as they are published: the configuration does not say so.
    """
    config: Any = make_config("deberta-v2")
    config.legacy = False
    torch.manual_seed(0)
    model = DebertaV2ForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    folder = tmp_path / "published"
    save_model(model, tiny_tokenizer, folder)
    settings = json.loads((folder / "config.json").read_text())
    del settings["legacy"]
    (folder / "config.json").write_text(json.dumps(settings))
    return model, folder


def test_the_head_of_published_models_is_read(published, tiny_tokenizer, tmp_path):
    """transformers' class would draw a head at random; what is saved here it reads."""
    model, folder = published
    assert "lm_predictions.lm_head.dense.weight" in load_file(folder / "model.safetensors")
    check_folder(folder)
    _, found = load_model(folder)
    save_model(found, tiny_tokenizer, tmp_path / "again")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        for each in (found, again):
            torch.testing.assert_close(each(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_configuration_that_names_the_published_head_is_read_alike(published):
    """`legacy: false`, as transformers writes it for such a head."""
    model, folder = published
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"legacy": False}))
    _, found = load_model(folder)
    assert found.config.legacy
    with torch.no_grad():
        assert torch.equal(found.base_model(input_ids=IDS)[0], model.base_model(input_ids=IDS)[0])


def test_lines_that_convert_a_checkpoint_keep_its_head(published):
    """A published folder has pytorch_model.bin alone."""
    model, folder = published
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"only pytorch_model.bin") as caught:
        check_folder(folder)
    lines = [line.strip() for line in str(caught.value).splitlines() if line.startswith("    ")]
    exec("\n".join(lines), {})
    _, found = load_model(folder.with_name("published-safetensors"))
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        torch.testing.assert_close(found(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.e2e
def test_a_compiled_body_takes_the_mask_of_packed_documents(tiny_model, batch_of, words):
    """In every run: a hook takes the mask from its embeddings."""
    torch.compiler.reset()  # what other tests compiled counts against a limit
    model, family = tiny_model("deberta-v2"), family_named("deberta-v2")
    batches = [
        batch_of([[words(n), words(12 - n, 1)], [words(9, 2)]], 12, causal=False) for n in (7, 4)
    ]
    with torch.no_grad():
        expected = [family.run_body(model, batch) for batch in batches]
        model.base_model.compile(backend="aot_eager")
        for batch, right in zip(batches, expected, strict=True):
            torch.testing.assert_close(family.run_body(model, batch), right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [("conv_kernel_size", 3), ("attention_head_size", 8), ("share_att_key", False)],
)
def test_what_published_v3_models_do_not_have_is_refused_by_name(key, value, tmp_path):
    """Such as the convolution after the first layer of DeBERTa v2."""
    config = make_config("deberta-v2")
    setattr(config, key, value)
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"config\.json: {key} is {str(value).lower()}"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"pos_att_type": ["p2c"]},
        {"position_buckets": -1},
        {"position_buckets": -1, "max_relative_positions": 5},
        {"relative_attention": False, "position_biased_input": True},
    ],
    ids=str,
)
def test_flops_of_relative_positions_are_those_that_torch_counts(settings):
    """One forward pass of two sequences, whichever positions are scored, and by what."""
    size: Any = make_config("deberta-v2")
    for name, value in settings.items():
        setattr(size, name, value)
    model: Any = DebertaV2ForMaskedLM(size).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.cat([IDS, IDS]))
    rows = 2 * IDS.shape[1]
    step = StepShape(rows, rows * IDS.shape[1], rows, rows, rows, 1, "fp32")
    assert rows * forward_flops(step, size) == pytest.approx(counter.get_total_flops(), rel=1e-12)


def test_a_pooler_has_the_student_s_hidden_size():
    """Otherwise no classifier could start from a student of a smaller one."""
    config: Any = plan_student(make_config("deberta-v2"), StudentRecipe(hidden_size=8)).config
    assert (config.hidden_size, config.pooler_hidden_size, config.num_attention_heads) == (8, 8, 1)
