"""Trimmed tokenizers: they read what the whole one reads, and each of their tokens is reached."""

import json
import random
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from stillhouse.errors import DataError, RecipeError
from stillhouse.models.hub import resolve_folder
from stillhouse.tokens.encoders import ODD_TEXTS
from stillhouse.tokens.tokenizer import (
    check_same_tokenizer,
    load_tokenizer,
    num_ids,
    save_tokenizer,
    text_encoder,
)
from stillhouse.tokens.tokenizer_training import train_tokenizer
from stillhouse.tokens.vocabulary import (
    BYTES,
    SPACE,
    check_vocabulary_size,
    choose_tokens,
    last_merges,
    pieces_of,
    trim_tokenizer,
)

SAMPLE_TEACHER = resolve_folder("sample", offline=True)
WORDS = [
    "the",
    "still",
    "keeps",
    "the",
    "spirit",
    "and",
    "leaves",
    "the",
    "water",
    "behind,",
    "drop",
    "by",
    "drop;",
    "stills",
    "still",
    "stir",
]


def counts_of(tokenizer, text: str) -> np.ndarray:
    return np.bincount(text_encoder(tokenizer)([text])[0], minlength=num_ids(tokenizer))


def trimmed(tokenizer, size: int, text: str = "the still stills the water"):
    kept = choose_tokens(tokenizer, counts_of(tokenizer, text), size)
    return trim_tokenizer(tokenizer, kept), kept


def odd_texts(number: int) -> list[str]:
    """Random characters from all over Unicode, among words."""
    draw = random.Random(0)

    def piece() -> str:
        point = draw.randrange(draw.choice((0x300, 0x3000, 0xD800, 0x110000)))
        odd = "" if 0xD800 <= point < 0xE000 else chr(point)
        return draw.choice((odd, f" {draw.choice(WORDS)}", draw.choice(WORDS)))

    made = ["".join(piece() for _ in range(60)) for _ in range(number)]
    return [*ODD_TEXTS, *made]


@pytest.fixture(scope="module")
def byte_bpe():
    return train_tokenizer("byte_bpe", 300, iter([" ".join(WORDS) * 3]), "causal")


@pytest.fixture(scope="module")
def real():
    """The byte-level BPE of the packaged sample teacher: 6,144 tokens."""
    return load_tokenizer(SAMPLE_TEACHER)


def byte_fallback() -> PreTrainedTokenizerFast:
    """Character BPE as in Llama 2, with several merges for a token."""
    tokens = ["<unk>", "<s>", "</s>", *BYTES, SPACE, *"abc", "ab", "bc", "abc", f"{SPACE}a"]
    merges = [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c"), (SPACE, "a")]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(tokens[:3])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def unigram(*, falls_back: bool = False) -> PreTrainedTokenizerFast:
    pieces = [("<unk>", 0.0), ("</s>", 0.0)]
    pieces += [(token, -9.0) for token in BYTES] if falls_back else []
    pieces += [(SPACE, -4.0), *((letter, -5.0) for letter in "abc")]
    pieces += [("ab", -3.0), ("abc", -2.0), (f"{SPACE}a", -3.0), ("ax", -3.0)]
    backend = Tokenizer(models.Unigram(pieces, 0, falls_back))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def test_any_text_survives_a_byte_level_trim(real):
    """However small the vocabulary, decoding gives the text, odd characters included."""
    for size in (257, 300, 2_000):
        small, _ = trimmed(real, size)
        assert num_ids(small) == len(small) == size
        for text, ids in zip(odd_texts(30), text_encoder(small)(odd_texts(30)), strict=True):
            assert small.decode(ids) == text


def test_every_token_that_stays_is_reached(real):
    """A token whose merges were gone would be a row that no text reads."""
    small, _ = trimmed(real, 3_000, (SAMPLE_TEACHER / "README.md").read_text())
    special = {*small.all_special_ids}
    model = small.backend_tokenizer.model
    for token, id in small.get_vocab().items():
        assert id in special or [each.id for each in model.tokenize(token)] == [id], token


def test_a_trimmed_token_is_the_same_token(real):
    """New ids stand for the old tokens, in order, so a sequence reads the same in both."""
    small, kept = trimmed(real, 2_000)
    names = {id: token for token, id in real.get_vocab().items()}
    assert {token: kept[id] for token, id in small.get_vocab().items()} == {
        names[id]: id for id in kept.tolist()
    }
    text = "def still(water): return 'spirit'"
    assert real.decode(kept[text_encoder(small)([text])[0]]) == text


def test_what_the_text_uses_most_stays(byte_bpe):
    """The commonest word is still one token, and the rare one is spelled."""
    small, _ = trimmed(byte_bpe, 262, " the" * 50)
    assert len(text_encoder(small)([" the"])[0]) == 1
    assert len(text_encoder(byte_bpe)([" spirit"])[0]) < len(text_encoder(small)([" spirit"])[0])


def test_a_dropped_token_passes_its_count_on():
    """Without `abc`, what was `abc` is `ab c`: then `ab` is worth more than `xy`."""
    tokens = ["</s>", *"abcxy", "ab", "abc", "xy"]
    model = models.BPE(
        {token: id for id, token in enumerate(tokens)}, [("a", "b"), ("ab", "c"), ("x", "y")]
    )
    whole = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>")
    small, _ = trimmed(whole, len(tokens) - 2, "abc" * 5 + "ab" * 3 + "xy" * 7)
    assert {"ab", "abc", "xy"} & small.get_vocab().keys() == {"ab"}


def test_with_all_tokens_nothing_changes(real):
    small, kept = trimmed(real, len(real))
    assert kept.tolist() == [*range(len(real))]
    assert json.loads(small.backend_tokenizer.to_str()) == json.loads(
        real.backend_tokenizer.to_str()
    )


def test_of_several_merges_the_one_that_encoding_takes():
    """`abc` is `a bc`, as `b c` comes first; `ab c` makes it in no text."""
    merges = [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c"), ("x", "y"), ("z", "xy"), ("q", "r")]
    found = last_merges(merges)
    assert found["abc"] == ("a", "bc")
    assert found["zxy"] == ("z", "xy")


@pytest.mark.parametrize("make", [byte_fallback, lambda: unigram(falls_back=True)])
def test_characters_fall_back_to_bytes(make):
    """Dropped characters are bytes, and the text is the same; the sign for a space stays."""
    tokenizer = make()
    smallest = len(pieces_of(tokenizer).fixed)
    small, _ = trimmed(tokenizer, smallest)
    assert "a" not in small.get_vocab()
    assert SPACE in small.get_vocab()
    for text in ("abc ab", "a b\u00e9 \U0001f642 c"):
        assert small.decode(text_encoder(small)([text])[0]) == text


def test_characters_of_a_unigram_model_stay():
    """Without bytes, single characters do, and a token whose `x` has no token of its own."""
    tokenizer = unigram()
    small, _ = trimmed(tokenizer, len(pieces_of(tokenizer).fixed))
    assert small.get_vocab().keys() >= {"a", "b", "c", SPACE, "ax", "<unk>"}
    assert "abc" not in small.get_vocab()
    encode = text_encoder(small)
    assert small.unk_token_id not in encode(["abc ax cab"])[0]
    assert small.unk_token_id in encode(["abz"])[0]


def test_another_unigram_model_is_not_the_same_tokenizer(tmp_path):
    """Of equally many tokens, of which others were kept."""
    whole = unigram()
    for place, kept in enumerate(([*range(9)], [*range(8), 9])):
        save_tokenizer(trim_tokenizer(whole, np.array(kept)), tmp_path / str(place))
    first = load_tokenizer(tmp_path / "0")
    check_same_tokenizer(first, tmp_path / "0")
    with pytest.raises(DataError, match="disagree on 1 tokens"):
        check_same_tokenizer(first, tmp_path / "1")


def test_a_wordpiece_trim_knows_the_words_it_knew():
    """A word of known characters never becomes [UNK], in the smallest vocabulary either."""
    whole = train_tokenizer("wordpiece", 79, iter([" ".join(WORDS)] * 5), "masked")
    small, _ = trimmed(whole, len(pieces_of(whole).fixed))
    assert len(small) < len(whole)
    assert small.unk_token_id not in text_encoder(small)([" ".join(WORDS)])[0]
    assert small("drop")["input_ids"][0] == small.cls_token_id
    assert small("drop")["input_ids"][-1] == small.sep_token_id


def test_the_template_and_special_tokens_stay(byte_bpe, tmp_path):
    """They are saved with the trimmed tokenizer, and transformers reads them there."""
    from transformers import AutoTokenizer

    whole = byte_bpe
    whole.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    whole.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    small, _ = trimmed(whole, 280)
    save_tokenizer(small, tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.chat_template == whole.chat_template
    text = "<|im_start|>the still<|im_end|>"
    assert read.decode(read(text)["input_ids"]) == text
    assert len(read(text)["input_ids"]) < len(text)
    assert read.eos_token_id == small.get_vocab()["<|endoftext|>"]


def test_tokens_put_around_a_text_stay(byte_bpe):
    """Also where they are no added tokens, and the text that is counted has none of them."""
    backend = Tokenizer.from_str(byte_bpe.backend_tokenizer.to_str())
    tokens = [" spirit".replace(" ", "\u0120"), "\u0120leaves"]
    first, last = ((token, byte_bpe.get_vocab()[token]) for token in tokens)
    backend.post_processor = processors.BertProcessing(last, first)
    whole = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    small, _ = trimmed(whole, len(pieces_of(whole).fixed))
    ids = small("a")["input_ids"]
    assert small.convert_ids_to_tokens(ids) == [tokens[0], "a", tokens[1]]


def test_a_size_that_would_lose_bytes_is_refused(byte_bpe):
    fixed, most = len(pieces_of(byte_bpe).fixed), len(byte_bpe)
    check_vocabulary_size(byte_bpe, fixed)
    for size in (fixed - 1, most + 1):
        with pytest.raises(RecipeError, match=f"{size}.*Give {fixed} to {most}"):
            check_vocabulary_size(byte_bpe, size)


def test_a_vocabulary_of_words_is_refused():
    """Every word that it drops would be lost."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "still": 1}, unk_token="[UNK]"))
    whole = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    with pytest.raises(DataError, match="WordLevel"):
        check_vocabulary_size(whole, 2)


@pytest.mark.e2e
@pytest.mark.parametrize("size", [1_024, 24_576])
def test_smollm2_reads_any_text_in_a_smaller_vocabulary(size, smollm2_folder, shared_data):
    """Real text, chat and odd characters decode as with all 49,152 tokens."""
    whole = load_tokenizer(smollm2_folder)
    text = (shared_data / "wikitext" / "wikitext-2" / "valid.txt").read_text()[:300_000]
    small, kept = trimmed(whole, size, text)
    encode = [text_encoder(tokenizer) for tokenizer in (small, whole)]
    for each in (text, *odd_texts(100)):
        own, theirs = (encoder([each])[0] for encoder in encode)
        assert small.decode(own) == whole.decode(theirs) == whole.decode(kept[own])
    chat = [{"role": "user", "content": "Which still?"}]
    texts = []
    for tokenizer in (small, whole):
        ids: Any = tokenizer.apply_chat_template(chat)
        texts.append(tokenizer.decode(ids["input_ids"]))
    assert texts[0] == texts[1]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("source", "size"),
    [("bert/bert-base-uncased-vocab.txt", 4_096), ("bert/bert-base-cased-vocab.txt", 1_999)],
)
def test_bert_knows_as_much_in_a_smaller_vocabulary(source, size, shared_data):
    """In real text and odd characters no more tokens are unknown, and the text reads the same."""
    whole = load_tokenizer(shared_data / "vocab" / source)
    text = (shared_data / "wikitext" / "wikitext-2" / "valid.txt").read_text()[:100_000]
    small, _ = trimmed(whole, size, text)
    encode = [text_encoder(tokenizer) for tokenizer in (small, whole)]
    for each in (text, *odd_texts(50)):
        own, theirs = (encoder([each])[0] for encoder in encode)
        assert (own == small.unk_token_id).sum() <= (theirs == whole.unk_token_id).sum()
        if whole.unk_token_id not in theirs:
            assert small.decode(own) == whole.decode(theirs)
    assert small.convert_ids_to_tokens(small("a b")["input_ids"]) == ["[CLS]", "a", "b", "[SEP]"]
