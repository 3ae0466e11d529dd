"""A model folder is looked over once: what `run` would stumble over is known without its weights,
and the message names the way out."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.tiny_models import EVERY_FAMILY
from tokenizers import AddedToken

import stillhouse
from stillhouse.errors import DataError, ModelError
from stillhouse.families.registry import FAMILIES
from stillhouse.models.folder_check import load_model_tokenizer, result_files
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import check_folder, load_model, save_model
from stillhouse.stages.context import folder_fingerprint
from stillhouse.tokens.tokenizer import save_tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder_of(tmp_path, tiny_model, tiny_tokenizer):
    """folder_of(family): an intact folder."""

    def make(family: str) -> Path:
        save_model(tiny_model(family), tiny_tokenizer, tmp_path / family)
        return tmp_path / family

    return make


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_an_intact_folder_passes(folder_of, family):
    """Of every family; under the names that old checkpoints have, and without weights too."""
    folder = folder_of(family)
    check_folder(folder)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor
        for name, tensor in load_file(folder / WEIGHTS).items()
    }
    save_file(old, folder / WEIGHTS, metadata={"format": "pt"})
    check_folder(folder)
    (folder / WEIGHTS).unlink()
    check_folder(folder, needs_weights=False)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_a_masked_model_without_its_head_is_refused_alike(folder_of, family):
    """By the look at the names and by loading; the class, and the ways out, are named."""
    folder = folder_of(family)
    body = getattr(transformers, FAMILIES[family].model_class).from_pretrained(folder).base_model
    body.save_pretrained(folder)
    for refuse in (check_folder, load_model):
        with pytest.raises(ModelError, match="no masked language modeling head") as caught:
            refuse(folder)
        assert type(body).__name__ in str(caught.value)
        assert "finetuning.TASK.models" in str(caught.value)
    check_folder(folder, head=False)
    code = re.search(r"\w+\.from_pretrained\(.*?save_pretrained\('.*?'\)", str(caught.value))
    assert code is not None
    type_name = FAMILIES[family].model_class
    eval(code[0], {type_name: getattr(transformers, type_name)})
    check_folder(Path(f"{folder}-with-head"))


def test_a_pickled_checkpoint_is_converted_by_the_lines_that_are_named(folder_of):
    """The message's code runs unchanged, and its folder is the same model."""
    folder = folder_of("bert")
    before = load_model(folder)[1].state_dict()
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"only pytorch_model.bin") as caught:
        check_folder(folder)
    lines = [line.strip() for line in str(caught.value).splitlines() if line.startswith("    ")]
    exec("\n".join(lines), {})
    converted = Path(str(caught.value).rpartition("and give ")[2].removesuffix("."))
    for name, tensor in load_model(converted)[1].state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_shard_that_is_missing_is_named(folder_of):
    """The index names more files than there are."""
    folder = folder_of("gpt2")
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ModelError, match=r"model-00002-of-00002.safetensors is missing"):
        check_folder(folder)


class TestTokenizer:
    """A tokenizer and its model."""

    @pytest.mark.parametrize("special", [False, True])
    def test_a_token_without_an_embedding_is_refused_on_loading(self, folder_of, special):
        """One token was added and the embeddings were not resized: every way in refuses it."""
        folder = folder_of("gpt2")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        size = len(tokenizer)
        tokenizer.add_tokens([AddedToken("<new>", special=special)], special_tokens=special)
        tokenizer.save_pretrained(folder)
        for refuse in (check_folder, stillhouse.load, load_model_tokenizer):
            with pytest.raises(ModelError, match="'<new>'") as caught:
                refuse(folder)
            assert f"resize_token_embeddings({size + 1})" in str(caught.value)

    def test_a_padded_vocabulary_is_accepted(self, tmp_path, tiny_model, tiny_tokenizer):
        """A model may have rows that no token has."""
        model = tiny_model("gpt2")
        model.resize_token_embeddings(64)
        save_model(model, tiny_tokenizer, tmp_path)
        check_folder(tmp_path)

    @pytest.mark.parametrize(
        "kind", ["GPT2Tokenizer", "RobertaTokenizer", "BertTokenizer", "DistilBertTokenizer"]
    )
    def test_a_tokenizer_whose_vocabulary_did_not_load_is_refused(self, folder_of, kind):
        """transformers makes an empty one of a folder without vocabulary files, in silence."""
        folder = folder_of("bert")
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
        for refuse in (check_folder, stillhouse.load):
            with pytest.raises(DataError, match="gives no tokens for any text") as caught:
                refuse(folder)
            assert str(folder) in str(caught.value)

    def test_it_says_no_more_than_the_model_takes(self, folder_of, tiny_tokenizer):
        """`model_max_length` is the model's positions, or less where the tokenizer says less; plain
        transformers then truncates to what the model can read."""
        folder = folder_of("roberta")
        positions = load_model_tokenizer(folder).model_max_length
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert settings["model_max_length"] == positions < 1024
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        inputs = tokenizer("w5 " * 90, truncation=True, return_tensors="pt")
        assert inputs["input_ids"].shape[1] == positions
        transformers.AutoModel.from_pretrained(folder)(input_ids=inputs["input_ids"])
        model = load_model(folder)[1]
        tiny_tokenizer.model_max_length = 7
        save_model(model, tiny_tokenizer, folder)
        assert load_model_tokenizer(folder).model_max_length == 7

    def test_settings_of_a_task_are_not_saved_with_it(self, tmp_path, tiny_tokenizer):
        """Truncation and padding that a call left behind would cut the texts of other readers."""
        tiny_tokenizer(["w5 w6"] * 2, truncation=True, max_length=3, padding="max_length")
        save_tokenizer(tiny_tokenizer, tmp_path)
        saved = json.loads((tmp_path / "tokenizer.json").read_text())
        assert saved["truncation"] is None
        assert saved["padding"] is None

    def test_a_masked_model_reads_texts_between_the_tokens_it_was_trained_with(self, folder_of):
        """A tokenizer.json without a post-processor, as training code often leaves it."""
        tokenizer = load_model_tokenizer(folder_of("bert"))
        assert tokenizer("w5 w6")["input_ids"] == [2, 5, 6, 3]
        assert tokenizer("w5", "w6")["input_ids"] == [2, 5, 3, 6, 3]
        assert load_model_tokenizer(folder_of("gpt2"))("w5 w6")["input_ids"] == [5, 6]


def test_every_file_that_changes_results_is_part_of_the_fingerprint(folder_of):
    """Templates, vocabularies and the modules of sentence-transformers; no notes, no checkpoints of
    other programs."""
    folder = folder_of("gpt2")
    seen = {folder_fingerprint(folder)}
    for name in (
        *("chat_template.jinja", "additional_chat_templates/tool.jinja", "merges.txt", "vocab.txt"),
        *("tokenizer.model", "vocab.bpe", "1_Pooling/config.json", "2_Dense/model.safetensors"),
        *("generation_config.json", "added_tokens.json", "sentence_bert_config.json"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("changed")
        assert folder / name in result_files(folder)
        seen.add(folder_fingerprint(folder))
    assert len(seen) == 12
    for name in ("README.md", "notes.txt", "checkpoint-5/model.safetensors", "run.log"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("changed")
        seen.add(folder_fingerprint(folder))
    assert len(seen) == 12


def test_a_hub_snapshot_has_every_file_that_changes_results(monkeypatch):
    """Whatever is part of a fingerprint is fetched, in subfolders too; and the card, which states
    the license."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.update(options) or "/x"
    )
    resolve_folder("owner/name", offline=False)
    wanted = [
        *("config.json", "generation_config.json", "model.safetensors", "vocab.txt", "merges.txt"),
        *("chat_template.jinja", "additional_chat_templates/tool.jinja", "tokenizer.model"),
        *("encoder.json", "vocab.bpe", "1_Pooling/config.json", "2_Dense/model.safetensors"),
        "README.md",
    ]
    unwanted = ["pytorch_model.bin", "modeling_own.py", "tf_model.h5"]
    found = filter_repo_objects([*wanted, *unwanted], allow_patterns=asked["allow_patterns"])
    assert list(found) == wanted
