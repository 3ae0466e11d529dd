"""GGUF files of odd models, in llama.cpp itself: the same tokens and the same probabilities as in
Stillhouse, in every precision; the same text, the same ends, the same chat."""

import json
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tests.export.odd_models import END, ODD_MODELS, add_tokens, edit_json, odd_model, pad

import stillhouse
from stillhouse.errors import ModelError
from stillhouse.export.export import CAUSAL_BOUNDS, export_model
from stillhouse.inference.engine.kv_cache import Chunk
from stillhouse.inference.loaded import LoadedModel
from stillhouse.inference.quantization import blocks_of
from stillhouse.models.llama_cpp import LlamaCpp

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
PROMPT, NEW_TOKENS, PROMPTS = 32, 64, 2


@pytest.fixture(scope="session")
def table():
    """What the tests below measured, printed at the end (`pytest -s`)."""
    rows: list[str] = []
    yield rows
    print("\n| model | precision | same greedy tokens | largest difference, nats | mean |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))


def own_logits(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    """Of the token after each one, as Stillhouse generates with them."""
    slots = loaded.slots(1)
    place = slots.open()
    logits = slots.forward([Chunk(place, ids, len(ids))])
    slots.close(place)
    return logits


def own_greedy(loaded: LoadedModel, prompt: list[int], number: int) -> tuple[list[int], np.ndarray]:
    """The most likely tokens and their log-probabilities; those that end a text are not drawn."""
    ids, found = list(prompt), []
    for _ in range(number):
        logits = own_logits(loaded, ids)[-1]
        allowed = logits.clone()
        allowed[sorted(loaded.end_ids)] = -torch.inf
        token = int(allowed.argmax())
        found.append(float(logits.log_softmax(-1)[token]))
        ids.append(token)
    return ids[len(prompt) :], np.array(found)


@pytest.fixture(scope="session")
def odd_folder(tmp_path_factory):
    """An odd model by its name."""
    return cache(lambda name: ODD_MODELS[name](tmp_path_factory.mktemp("odd") / "model"))


@pytest.fixture(scope="session")
def own_texts(odd_folder):
    """An odd model's greedy texts after two prompts."""

    @cache
    def texts(name: str):
        loaded = stillhouse.load(odd_folder(name))
        prompts = [blocks_of(loaded)[1][at : at + PROMPT] for at in (0, 2 * PROMPT)]
        return [(prompt, *own_greedy(loaded, prompt, NEW_TOKENS)) for prompt in prompts]

    return texts


def llama_cpp(folder: Path) -> LlamaCpp:
    """The exported file in llama.cpp."""
    return LlamaCpp(folder / "model.gguf", 256)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", ODD_MODELS)
def test_llama_cpp_gives_stillhouse_tokens_and_log_probabilities(
    tmp_path, odd_folder, own_texts, table, name, precision
):
    """In float32 the same 64 tokens and log-probabilities to 0.001; else to the stated bounds."""
    export_model(str(odd_folder(name)), "gguf", tmp_path / "out", precision=precision)
    engine = llama_cpp(tmp_path / "out")
    same, differences = 0, []
    for prompt, tokens, log_probabilities in own_texts(name):
        same += engine.generate(prompt, NEW_TOKENS) == tokens
        found = engine.log_probabilities(prompt + tokens)[PROMPT - 1 :]
        differences.append(np.array(found) - log_probabilities)
    difference = np.concatenate(differences)
    largest, mean = np.abs(difference).max(), difference.mean()
    table.append(f"| {name} | {precision} | {same} of {PROMPTS} | {largest:.5f} | {mean:+.5f} |")
    allowed = CAUSAL_BOUNDS[precision]
    assert abs(mean) <= allowed["loss"]
    assert largest <= (1e-3 if precision == "fp32" else allowed["log_probability"])
    if precision == "fp32":
        assert same == PROMPTS


def test_llama_cpp_stops_at_an_end_token_named_in_generation_config_alone(tmp_path, odd_folder):
    model = odd_folder("end tokens in generation_config.json")
    found = export_model(str(model), "gguf", tmp_path / "out", precision="fp32")
    tokenizer = stillhouse.load(model).tokenizer
    assert found["end_tokens"] == tokenizer.convert_ids_to_tokens([0, END])
    engine = llama_cpp(tmp_path / "out")
    assert engine.end_ids == {0, END}
    assert len(engine.complete([10, 20, 30, 40], 64)["logprobs"]["content"]) < 16


@pytest.mark.parametrize(
    ("own", "generation", "expected"),
    [
        ([0, 5], None, {0, 5}),  # a list in config.json
        (None, None, {0}),  # neither file names one: the tokenizer's
        (50_256, 317, {0, 317}),  # 50,256 is no token; llama.cpp knows <|endoftext|> by name
        ([317, 5], [0, 5], {0, 5, 317}),
    ],
)
def test_llama_cpp_stops_at_every_end_token(tmp_path, own, generation, expected):
    model = odd_model(tmp_path / "model", eos_token_id=own)
    edit_json(model / "generation_config.json", eos_token_id=generation)
    export_model(str(model), "gguf", tmp_path / "out", precision="fp16")
    engine = LlamaCpp(tmp_path / "out" / "model.gguf", 256)
    assert engine.end_ids == expected


def test_llama_cpp_keeps_added_tokens_whole(tmp_path, odd_folder):
    """One token each, amid other text, and their own text again."""
    model = odd_folder("added tokens")
    export_model(str(model), "gguf", tmp_path / "out")
    engine, tokenizer = llama_cpp(tmp_path / "out"), stillhouse.load(model).tokenizer
    for token in ("<|user|>", "New York", "<|sep|>"):
        (id,) = tokenizer(token)["input_ids"]
        text = f"Hello{token}, and {token} again."
        ids = engine.tokens_of(text)
        assert ids == tokenizer(text)["input_ids"]
        assert ids.count(id) == 2
        assert engine.text_of(ids) == text
    types = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields["tokenizer.ggml.token_type"]
    user, name, special = (gguf.TokenType(kind) for kind in types.contents()[-3:])
    assert user == name == gguf.TokenType.USER_DEFINED
    assert special == gguf.TokenType.CONTROL


def test_padding_of_the_vocabulary_is_not_in_the_file(tmp_path, odd_folder):
    """Here it is as likely as the most likely token, and takes part in no probability."""
    model = odd_folder("padded")
    loaded = stillhouse.load(model)
    export_model(str(model), "gguf", tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == len(loaded.tokenizer) == loaded.model.config.vocab_size - 64
    assert {each.name: each.shape for each in reader.tensors}["token_embd.weight"][1] == len(tokens)


def test_ids_that_no_token_has_are_never_generated(tmp_path):
    """A gap in the ids, whose embeddings are those of a likely token."""
    model = odd_model(tmp_path / "model", pad)
    state = json.loads((model / "tokenizer.json").read_text())
    last = next(word for word, id in state["model"]["vocab"].items() if id == 6143)
    state["model"]["vocab"][last] = 6150
    (model / "tokenizer.json").write_text(json.dumps(state))
    loaded = stillhouse.load(model)
    assert loaded.unused_ids[:7] == tuple(range(6143, 6150))
    for to in ("gguf", "ctranslate2"):
        export_model(str(model), to, tmp_path / to, precision="fp32")
    engine = llama_cpp(tmp_path / "gguf")
    assert not set(engine.generate([10, 20, 30, 40], 64)) & set(range(6143, 6150))
    reader = gguf.GGUFReader(tmp_path / "gguf" / "model.gguf")
    assert reader.fields["tokenizer.ggml.tokens"].contents()[6143] == "<|padding_6143|>"
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    assert types[6142:6151] == [gguf.TokenType.NORMAL, *[gguf.TokenType.UNUSED] * 7, 1]


def test_the_chat_template_of_a_model_is_the_files(tmp_path):
    template = "{% for m in messages %}<|user|>{{ m.role }}: {{ m.content }}\n{% endfor %}bot:"

    def give_template(model, tokenizer):
        add_tokens(model, tokenizer)
        tokenizer.chat_template = template

    model = odd_model(tmp_path / "model", give_template)
    assert (model / "chat_template.jinja").read_text() == template
    export_model(str(model), "gguf", tmp_path / "out")
    messages = [{"role": "assistant", "content": "Ho"}, {"role": "user", "content": "Hi"}]
    own = stillhouse.load(model).tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    engine = llama_cpp(tmp_path / "out")
    assert engine.post("/apply-template", {"messages": messages})["prompt"] == own
    for other in ("ctranslate2",):
        export_model(str(model), other, tmp_path / other)
        assert (tmp_path / other / "chat_template.jinja").read_text() == template


@pytest.mark.parametrize(
    "config",
    [
        {"layer_norm_epsilon": 0.05},
        {"activation_function": "gelu_new"},
        {"activation_function": "gelu_fast"},
        {"reorder_and_upcast_attn": True},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
    ],
    ids=str,
)
def test_keys_that_change_the_computation_are_in_the_file(tmp_path, config):
    """The check in llama.cpp allows 0.001 nats a token in float32."""
    model = odd_model(tmp_path / "model", **config)
    found = export_model(str(model), "gguf", tmp_path / "out", precision="fp32")
    assert abs(found["parity"]["loss_change_nats"]) < 1e-3


def test_a_name_that_llama_cpp_knows_is_said_to_end_a_text(tmp_path):
    """llama.cpp stops at <|im_end|> whatever the file says."""

    def add_im_end(model, tokenizer):
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
        model.resize_token_embeddings(len(tokenizer))

    model = odd_model(tmp_path / "phi-3-student", add_im_end)
    found = export_model(str(model), "gguf", tmp_path / "out")
    assert found["notes"] == ["xllamacpp also ends a text at '<|im_end|>', which it knows by name."]


def test_a_file_that_llama_cpp_does_not_load_is_an_error_of_the_model(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF, or not")
    with pytest.raises(ModelError, match=r"llama\.cpp does not load .*model\.gguf"):
        LlamaCpp(tmp_path / "model.gguf", 256)
