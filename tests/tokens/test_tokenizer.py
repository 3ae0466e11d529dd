"""Tokenizers: loaded from any of their forms, trained alike everywhere, deaf to special text."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from stillhouse.errors import DataError
from stillhouse.tokens.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    special_tokens,
    text_encoder,
    tokenizer_fingerprint,
)
from stillhouse.tokens.tokenizer_training import train_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data" / "vocab"
needs_shared_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the published vocabularies in ../shared/data/vocab"
)

SYLLABLES = [consonant + vowel for consonant in "bcdlmprst" for vowel in "aeiou"]
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES]
TEXTS = [" ".join(WORDS[start:] + WORDS[:start]).capitalize() + ".\n" for start in range(10)]


def trained(kind, language_modeling, size=400):
    return train_tokenizer(kind, size, iter(TEXTS), language_modeling)


@pytest.fixture(scope="module")
def causal():
    return trained("byte_bpe", "causal")


@pytest.fixture(scope="module")
def wordpiece():
    return trained("wordpiece", "masked")


def test_a_causal_tokenizer_has_an_end_of_text(causal):
    """The one special token of a causal tokenizer ends, and so begins, a document."""
    special = special_tokens(causal, "causal")
    assert causal.convert_ids_to_tokens(special.end_of_text) == "<|endoftext|>"
    assert special.all_ids == (special.end_of_text,)
    assert special.mask is None


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("byte_bpe", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        ("wordpiece", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]),
    ],
)
def test_a_masked_tokenizer_has_its_five_tokens_first(kind, tokens):
    """The order is that of RoBERTa and of BERT."""
    tokenizer = trained(kind, "masked")
    special = special_tokens(tokenizer, "masked")
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == tokens
    assert special.all_ids == (0, 1, 2, 3, 4)
    named = [special.cls, special.sep, special.mask, special.pad, special.unk]
    assert sorted(id for id in named if id is not None) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [300, 350, 512])
@pytest.mark.parametrize("kind", ["byte_bpe", "wordpiece"])
def test_training_gives_exactly_the_requested_vocabulary_size(kind, size):
    """An embedding matrix of the recipe's size fits the tokenizer."""
    assert len(trained(kind, "masked", size)) == size


@pytest.mark.parametrize("kind", ["byte_bpe", "wordpiece"])
def test_a_text_too_small_for_the_vocabulary_is_refused(kind):
    """The error says how many entries the text gives."""
    with pytest.raises(DataError, match=r"vocabulary_size is 30000, .* only \d+ entries") as error:
        trained(kind, "masked", 30_000)
    assert error.value.exit_code == 3


def test_byte_bpe_decodes_to_the_same_bytes(causal):
    """Byte-level BPE loses nothing: every text is spelled out again exactly."""
    text = " Two  spaces,\ttabs\r\n\n日本語 🙂 é \x07"
    (ids,) = text_encoder(causal)([text])
    assert causal.decode(ids.tolist(), clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    ("kind", "language_modeling", "text"),
    [
        ("byte_bpe", "causal", "an <|endoftext|> here"),
        ("byte_bpe", "masked", "<s> a <mask> b</s><pad>"),
        ("wordpiece", "masked", "[CLS] a [MASK] b [SEP][PAD]"),
    ],
)
def test_special_tokens_in_a_text_are_encoded_as_text(kind, language_modeling, text):
    """Whoever writes [MASK] in a document must not put a mask into the training data."""
    tokenizer = trained(kind, language_modeling)
    special = special_tokens(tokenizer, language_modeling)
    (ids,) = text_encoder(tokenizer)([text])
    assert not set(ids.tolist()) & (set(special.all_ids) - {special.unk})


def test_encoding_adds_no_special_tokens_and_does_not_truncate(wordpiece, recwarn, capfd):
    """No CLS, no padding to the longest, no truncation, and no warning about the length."""
    encode = text_encoder(wordpiece)
    long, short = encode(["ban " * 5000, "ban"])
    assert len(long) == 5000 * len(short)
    assert not recwarn
    assert capfd.readouterr().err == ""


def test_encoding_leaves_the_tokenizer_as_it_was(causal):
    """The tokenizer that is saved for users still knows its special tokens."""
    text_encoder(causal)(["ban"])
    assert causal.encode("<|endoftext|>") == [causal.eos_token_id]


@pytest.mark.parametrize(
    ("kind", "language_modeling"),
    [("byte_bpe", "causal"), ("byte_bpe", "masked"), ("wordpiece", "masked")],
)
def test_a_saved_tokenizer_gives_the_same_ids(kind, language_modeling, tmp_path):
    """What prepare saves is what the student's folder and transformers read."""
    before = trained(kind, language_modeling)
    before.save_pretrained(tmp_path)
    after = load_tokenizer(tmp_path)
    assert special_tokens(after, language_modeling) == special_tokens(before, language_modeling)
    assert text_encoder(after)(TEXTS[:1])[0].tolist() == text_encoder(before)(TEXTS[:1])[0].tolist()
    assert after.encode("ban <mask>") == before.encode("ban <mask>")
    assert after.model_max_length == before.model_max_length


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_vocabulary_and_merges_make_a_tokenizer(causal, names, tmp_path):
    """Today's names of the two files, and OpenAI's."""
    model = json.loads(causal.backend_tokenizer.to_str())["model"]
    (tmp_path / names[0]).write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / names[1]).write_text(f"#version: 0.2\n{merges}\n")
    loaded = load_tokenizer(tmp_path)
    assert special_tokens(loaded, "causal").end_of_text == causal.eos_token_id
    assert (
        text_encoder(loaded)(TEXTS[:1])[0].tolist() == text_encoder(causal)(TEXTS[:1])[0].tolist()
    )


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_wordpiece_vocabulary_makes_a_tokenizer(wordpiece, as_folder, tmp_path):
    """A single file, or a folder with vocab.txt; without upper case it is a lower-casing one."""
    tokens = wordpiece.convert_ids_to_tokens([*range(len(wordpiece))])
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    loaded = load_tokenizer(tmp_path if as_folder else tmp_path / "vocab.txt")
    assert loaded.encode("Ban CARD") == wordpiece.encode("ban card")


@pytest.mark.parametrize(
    ("name", "lowered"), [("vocab.txt", False), ("bert-base-uncased-vocab.txt", True)]
)
def test_a_vocabulary_with_upper_case_is_cased_unless_named_otherwise(tmp_path, name, lowered):
    """Upper case in the vocabulary means that case matters."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ban", "Ban"]
    (tmp_path / name).write_text("\n".join(tokens))
    (ids,) = text_encoder(load_tokenizer(tmp_path / name))(["Ban"])
    assert ids.tolist() == [5 if lowered else 6]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds no tokenizer. It needs tokenizer\.json"),
        ({"vocab.json": b"{}"}, r"holds no tokenizer"),
        ({"tokenizer.json": b"{"}, r"cannot be read .* Fetch its files again"),
        ({"vocab.json": b"{", "merges.txt": b""}, r"cannot be read"),
        ({"vocab.txt": b"\xff\xfe"}, r"vocab\.txt is not a vocabulary: byte 0 is not UTF-8"),
        ({"vocab.txt": b"one\ntwo\n"}, r"not a WordPiece vocabulary: \[PAD\], \[UNK\]"),
    ],
)
def test_a_folder_that_holds_no_tokenizer_is_explained(tmp_path, files, message):
    """The error names the folder or file, and what it needs."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_tokenizer(tmp_path)
    assert error.value.exit_code == 3


def test_a_missing_tokenizer_is_explained(tmp_path):
    """A wrong path is said to be one."""
    with pytest.raises(DataError, match="There is no tokenizer at"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_tokenizer_of_the_wrong_kind_is_explained(causal, wordpiece):
    """Causal training needs an end, masked training a mask; the error says which is missing."""
    with pytest.raises(DataError, match="no end_of_text token, which causal"):
        special_tokens(wordpiece, "causal")
    with pytest.raises(DataError, match="no cls, sep, mask, pad token, which masked"):
        special_tokens(causal, "masked")


def test_the_fingerprint_is_independent_of_the_folder(causal, tmp_path):
    """A moved tokenizer is the same; a changed one is another."""
    for name in ("a", "b"):
        causal.save_pretrained(tmp_path / name)
    before = tokenizer_fingerprint(tmp_path / "a")
    assert tokenizer_fingerprint(tmp_path / "b") == before
    with (tmp_path / "b" / "tokenizer.json").open("a") as file:
        file.write(" ")
    assert tokenizer_fingerprint(tmp_path / "b") != before


TRAIN = """
from tests.tokens.test_tokenizer import trained
for kind in ("byte_bpe", "wordpiece"):
    print(trained(kind, "masked").backend_tokenizer.to_str())
"""


@pytest.mark.e2e
def test_training_gives_the_same_tokenizer_in_every_process():
    """Neither hash tables, which differ from process to process, nor threads show in the result."""
    results = {
        subprocess.run(
            [sys.executable, "-c", TRAIN],
            cwd=Path(__file__).parents[2],
            env={"RAYON_NUM_THREADS": threads, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(results) == 1


@needs_shared_data
def test_gpt2_ids_are_the_published_ones():
    """Known ids of GPT-2, from OpenAI's own two files."""
    tokenizer = load_tokenizer(SHARED / "gpt2")
    assert text_encoder(tokenizer)(["Hello world"])[0].tolist() == [15496, 995]
    assert special_tokens(tokenizer, "causal").end_of_text == 50256
    assert (len(tokenizer), tokenizer.model_max_length) == (50257, 1024)


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "ids"), [("uncased", [7592, 2088, 999]), ("cased", [8667, 1362, 106])]
)
def test_bert_ids_are_the_published_ones(name, ids):
    """Known ids of BERT, with and without case."""
    tokenizer = load_tokenizer(SHARED / "bert" / f"bert-base-{name}-vocab.txt")
    assert text_encoder(tokenizer)(["Hello world!"])[0].tolist() == ids


def write_vocabulary(tokenizer, folder: Path, **config) -> None:
    """A folder of vocab.json and merges.txt; with a tokenizer_config.json where one is given."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))


class TestMask:
    """The mask token includes the space before it, as in the published RoBERTa."""

    @pytest.fixture(scope="class")
    @staticmethod
    def roberta():
        return trained("byte_bpe", "masked")

    @staticmethod
    def check(tokenizer) -> None:
        tokens = tokenizer.convert_ids_to_tokens(tokenizer("ban <mask> bab")["input_ids"])
        place = tokens.index("<mask>")
        assert "Ġ" not in tokens
        assert tokens[place + 1].startswith("Ġ")
        masked = tokenizer("ban <mask> bab")["input_ids"]
        assert len(masked) == len(tokenizer("ban")["input_ids"]) + len(
            tokenizer(" bab", add_special_tokens=False)["input_ids"]
        ) + 1  # fmt: skip

    def test_mask_strips_the_space_in_a_trained_tokenizer(self, roberta, tmp_path):
        """As it is made, as it is saved, and as plain transformers loads it then."""
        self.check(roberta)
        roberta.save_pretrained(tmp_path)
        self.check(load_tokenizer(tmp_path))
        self.check(AutoTokenizer.from_pretrained(tmp_path))

    @pytest.mark.parametrize("config", [{}, {"tokenizer_class": "RobertaTokenizer"}])
    def test_mask_strips_the_space_with_vocab_json_and_merges_txt(self, roberta, tmp_path, config):
        """With and without a tokenizer_config.json."""
        write_vocabulary(roberta, tmp_path, **config)
        self.check(load_tokenizer(tmp_path))

    def test_mask_strips_the_space_with_a_plain_mask_in_tokenizer_json(self, roberta, tmp_path):
        """As training scripts often write it."""
        roberta.save_pretrained(tmp_path)
        file = tmp_path / "tokenizer.json"
        file.write_text(file.read_text().replace('"lstrip": true', '"lstrip": false'))
        self.check(load_tokenizer(tmp_path))


def test_saved_truncation_and_padding_are_ignored(causal, tmp_path):
    """A tokenizer.json of a sentence model cuts at 128 and pads to it: no text is cut by that."""
    causal.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    saved = json.loads(file.read_text())
    saved["truncation"] = {
        "direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    saved["padding"] = {
        "strategy": {"Fixed": 5}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    file.write_text(json.dumps(saved))
    loaded = load_tokenizer(tmp_path)
    expected = causal(TEXTS[0])["input_ids"]
    assert len(expected) > 5
    assert loaded(TEXTS[0])["input_ids"] == expected
    assert loaded.backend_tokenizer.encode(TEXTS[0]).ids == expected
    assert loaded("ban")["input_ids"] == causal("ban")["input_ids"]


def test_a_tokenizer_that_cannot_encode_its_own_tokens_is_refused(tmp_path):
    """Words without white space rules: every text is one unknown token."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(DataError, match="made of its own tokens, into unknown tokens alone"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_alone_is_explained(tmp_path):
    """What it is, and how it becomes a tokenizer.json."""
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"x")
    with pytest.raises(DataError, match=r"sentencepiece\.bpe\.model alone .* save_pretrained"):
        load_tokenizer(tmp_path)


def test_chat_templates_are_saved_with_the_tokenizer(causal, tmp_path):
    """`chat_template.jinja` beside a tokenizer.json, or beside a bare vocabulary; others too."""
    for name in ("full", "bare"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "full":
            causal.save_pretrained(folder)
        else:
            write_vocabulary(causal, folder)
        before = tokenizer_fingerprint(folder)
        (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
        assert tokenizer_fingerprint(folder) != before
        loaded = load_tokenizer(folder)
        said = [{"role": "user", "content": "Hi"}]
        assert loaded.apply_chat_template(said, tokenize=False) == "Hi!"
        save_tokenizer(loaded, folder / "saved")
        assert (folder / "saved" / "chat_template.jinja").read_text().endswith("!")
    more = tmp_path / "full" / "additional_chat_templates"
    more.mkdir()
    (more / "tool.jinja").write_text("tools")
    save_tokenizer(load_tokenizer(tmp_path / "full"), tmp_path / "both")
    assert (tmp_path / "both" / "additional_chat_templates" / "tool.jinja").read_text() == "tools"


def test_document_start_is_the_token_that_the_tokenizer_adds(causal):
    """End-of-text as in GPT-2, or a token of its own as in Llama, after the end of the last one."""
    special = special_tokens(causal, "causal")
    assert special.document_start == special.end_of_text
    assert special.document_prefix == (special.end_of_text,)
    llama = copy.deepcopy(causal)
    llama.add_special_tokens({"bos_token": "<s>"})
    start = llama.convert_tokens_to_ids("<s>")
    assert special_tokens(llama, "causal").document_start == special.end_of_text
    llama.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", start)]
    )
    assert special_tokens(llama, "causal").document_start == start
    assert special_tokens(llama, "causal").document_prefix == (special.end_of_text, start)


@pytest.mark.parametrize("length", ["512", 0, True])
def test_an_invalid_model_max_length_is_refused(causal, tmp_path, length):
    """A text of digits ended in a TypeError, and 0 cut all texts away."""
    causal.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": length}))
    with pytest.raises(DataError, match=rf"model_max_length is {length!r}"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_its_unknown_token_is_refused(wordpiece, tmp_path):
    """It reads its own words; the first text with another one would stop a run."""
    wordpiece.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text())
    state["model"]["unk_token"] = "[NONE]"
    file.write_text(json.dumps(state))
    Path(tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    with pytest.raises(DataError, match=r"cannot encode every text .*unk_token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("named", ["TokenizersBackend", "GPT2Tokenizer"])
def test_tokenizer_json_is_read_as_it_is_written(causal, named, tmp_path):
    """Whatever class the model type or tokenizer_config.json names: transformers' Qwen2Tokenizer
    and GPT2Tokenizer would split words by rules of their own."""
    tokenizer = copy.deepcopy(causal)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(tmp_path)
    rename_class(tmp_path, named)
    Qwen2Config().save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path).backend_tokenizer
    text = "Bab: 1984  bab\n\nit's"
    assert found.encode(text).ids == tokenizer.backend_tokenizer.encode(text).ids
    splits = found.pre_tokenizer.pre_tokenize_str("1984")
    assert [piece for piece, _ in splits] == ["1", "9", "8", "4"]


def rename_class(folder: Path, name: str, *, without=()) -> None:
    """Let tokenizer_config.json name this class."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"tokenizer_class": name}
    file.write_text(json.dumps({key: config[key] for key in config if key not in without}))


def test_a_regex_that_differs_at_its_end_is_kept(causal, tmp_path):
    """Two long pre-tokenizers are compared beyond what a library prints of them."""
    tokenizer = copy.deepcopy(causal)
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX + "|Q"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()  # as that of Qwen2
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.save_pretrained(tmp_path)
    rename_class(tmp_path, "Qwen2TokenizerFast")
    assert "|Q" in load_tokenizer(tmp_path).backend_tokenizer.to_str()


@pytest.mark.parametrize("without", [(), ("cls_token", "sep_token", "mask_token", "pad_token")])
def test_a_cased_wordpiece_stays_cased(wordpiece, without, tmp_path):
    """BertTokenizerFast would make it lowercase; its special tokens, which older files leave to
    that class, are found."""
    tokenizer = copy.deepcopy(wordpiece)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.save_pretrained(tmp_path)
    rename_class(tmp_path, "BertTokenizerFast", without=without)
    found = load_tokenizer(tmp_path)
    assert found.backend_tokenizer.normalizer.normalize_str("Bab") == "Bab"
    assert special_tokens(found, "masked") == special_tokens(wordpiece, "masked")
