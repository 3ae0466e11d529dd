"""llama.cpp in place of our engine: the same text where nothing rounds, and what it does not give
is refused in one sentence."""

import json
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from itertools import count

import pytest
import torch
from starlette.testclient import TestClient
from tests.export.odd_models import END, format_named, odd_model
from tests.serving.conftest import URL, application

import stillhouse
from stillhouse.errors import DataError, ModelError, RecipeError, ResourceError
from stillhouse.export.export import export_model
from stillhouse.export.exported import plain, vocabulary_of
from stillhouse.inference.engine.batcher import Ended, Failed, NewToken, Request
from stillhouse.inference.engine.llama_cpp import (
    LlamaCppBatcher,
    LlamaCppLM,
    _body,
    load_llama_cpp,
)
from stillhouse.inference.engine.text_stream import RequiredPrefix
from stillhouse.inference.engine.worker import Worker
from stillhouse.inference.engines import load_with_engine
from stillhouse.inference.generation import Generation
from stillhouse.inference.quantization import AtPrecision
from stillhouse.models.llama_cpp import LlamaCpp
from stillhouse.serving.config import Limits
from stillhouse.serving.schemas import APIError
from stillhouse.serving.served_model import ServedModel
from stillhouse.serving.server import _limitations

e2e = pytest.mark.e2e
PROMPT = "def main():"
QUESTIONS = ("What is the capital of France?", "Why is the sky blue?", "Name three fruits.")
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
SETTINGS = {"default": "fp32", "num_slots": 1}
GREEDY = Generation(greedy=True, max_new_tokens=24)
DRAWN = Generation(max_new_tokens=16, num_return_sequences=6, seed=3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The sample teacher in float32, with a second end token and a chat template."""
    folder = tmp_path_factory.mktemp("llama")

    def change(model, tokenizer):
        del model
        tokenizer.chat_template = TEMPLATE

    model = odd_model(folder / "model", change)
    export_model(str(model), "gguf", folder / "gguf", precision="fp32")
    return folder / "gguf" / "model.gguf"


@pytest.fixture(scope="module")
def lm(exported):
    return load_llama_cpp(str(exported), num_slots=4)


@pytest.fixture(scope="module")
def own():
    return stillhouse.load("sample")


@pytest.fixture(scope="module")
def http(exported):
    app = application((str(exported),), with_editor=True, engine="llama.cpp", precision=None)
    with TestClient(app, base_url=URL) as client:
        yield client


@e2e
def test_greedy_text_is_that_of_our_engine(lm, own):
    assert lm.continuations(PROMPT, GREEDY) == own.continuations(PROMPT, GREEDY)
    assert lm.end_ids == own.end_ids
    assert lm.precision == "F32"
    assert lm.num_parameters == own.num_parameters


@e2e
def test_prompts_that_begin_alike_are_continued_as_by_our_engine(lm, own):
    prompts = ["for each in texts:\n    print(each)\n" * 8 + end for end in ("def", "class")]
    assert lm.generate(prompts, greedy=True) == own.generate(prompts, greedy=True)


@e2e
def test_sequences_differ_and_follow_from_the_seed(lm):
    """More sequences than llama.cpp runs at once; alone, each seed gives its own text again."""
    texts = lm.continuations(PROMPT, DRAWN)
    assert len(set(texts)) == 6
    one = Generation(max_new_tokens=16, seed=9)
    assert lm.continuations(PROMPT, one) == lm.continuations(PROMPT, one)


@e2e
def test_a_stop_string_ends_a_text_and_is_not_part_of_it(lm):
    (whole,) = lm.continuations(PROMPT, GREEDY)
    word = whole.split()[3]
    stopped = Generation(greedy=True, max_new_tokens=24, stop=(word,))
    assert lm.continuations(PROMPT, stopped) == [whole[: whole.index(word)]]


def events_of(lm, request, after=None):
    """The events of a request; it is canceled after this number of them."""
    events = []
    batcher = lm.batcher(1)

    def listen(event):
        events.append(event)
        if len(events) == after:
            handle.cancel()

    handle = batcher.submit(request, listen)
    batcher.run()
    return events


@e2e
def test_a_request_that_is_canceled_sends_nothing_more(lm):
    settings = Generation(greedy=True, max_new_tokens=100)
    assert len(events_of(lm, Request(lm.prompt_ids(PROMPT), settings, 0), after=5)) == 5


class Chunks(LlamaCpp):
    """llama.cpp as it would send these chunks to each request, the last of them for ever."""

    def __init__(self, *chunks, is_endless=False):
        self.num_slots = 4
        self.chunks, self.is_endless = chunks, is_endless
        self.bodies, self.closed = [], threading.Semaphore(0)

    def stream(self, body):
        self.bodies.append(body)
        try:
            yield from self.chunks
            for number in count(2) if self.is_endless else ():
                time.sleep(0.01)
                yield self.chunks[-1] | {"tokens_predicted": number}
        finally:
            self.closed.release()

    def post(self, path, body):
        self.bodies.append(body)
        return {"tokens": [1]}


def chunk(id, text="", number=1, stop=None):
    tokens = [] if id is None else [id]
    known = {"tokens": tokens, "content": text, "tokens_predicted": number}
    return known | {"stop": stop is not None, "stop_type": stop or "none"}


def answered(lm, engine, *requests):
    """The events of requests."""
    batcher, events = LlamaCppBatcher(lm, engine), []
    for request in requests:
        batcher.submit(request, events.append)
    batcher.run()
    return events


@pytest.mark.parametrize(
    ("stop", "reason"), [("eos", "stop"), ("limit", "length"), ("word", "stop")]
)
def test_why_a_text_ended_is_what_llama_cpp_says(own, stop, reason):
    events = answered(own, Chunks(chunk(40), chunk(None, stop=stop)), Request((1,), GREEDY, 0))
    assert [each.reason for each in events if isinstance(each, Ended)] == [reason]


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ((chunk(40, "\ufffda", number=9), chunk(None, stop="eos")), "no character"),
        ((chunk(40),), "stopped within a text"),
        (({"error": {"message": "no memory"}},), "no memory"),
    ],
    ids=["no character", "cut off", "error"],
)
def test_a_text_that_llama_cpp_does_not_finish_fails(own, chunks, message):
    last = answered(own, Chunks(*chunks), Request((1,), GREEDY, 0))[-1]
    assert isinstance(last, Failed)
    assert message in str(last.error)


def test_the_queue_counts_requests(own):
    """With one request of six sequences, and then with more requests than llama.cpp has slots."""
    engine = Chunks(chunk(40), is_endless=True)
    batcher = LlamaCppBatcher(own, engine)
    events = []
    for _ in range(2):
        batcher.submit(Request((1,), DRAWN, 0), events.append)
    assert batcher.num_waiting == 2
    batcher.step()
    assert (batcher.num_waiting, batcher.num_running, batcher.num_free) == (1, 4, 0)
    batcher.abandon(ResourceError("the end"))
    assert [str(each.error) for each in events if isinstance(each, Failed)] == ["the end"] * 2
    assert batcher.is_idle
    assert all(engine.closed.acquire(timeout=5) for _ in range(4))


@pytest.mark.parametrize(("number", "status"), [(13, 400), (12, None)])
def test_more_prompts_than_llama_cpp_can_hold_are_400(own, number, status):
    """Those in its slots and in the queue, however many slots the server has."""
    worker = Worker()
    served = ServedModel("model", AtPrecision(own, "fp32"), Limits(num_slots=16, queue=8), worker)
    served.batcher = LlamaCppBatcher(own, Chunks())
    admit = partial(served._admit, [Request((1,), GREEDY, 0)] * number)
    if status is None:
        assert admit() is served.batcher
    else:
        with pytest.raises(APIError, match="13 prompts exceed the 12") as error:
            admit()
        assert error.value.status == status
    worker.close()


def test_an_error_ends_the_other_sequences(own):
    engine = Chunks(chunk(40), is_endless=True)
    batcher = LlamaCppBatcher(own, engine)

    def fail(event):
        raise KeyboardInterrupt

    batcher.submit(Request((1,), DRAWN, 0), fail)
    with pytest.raises(KeyboardInterrupt):
        batcher.run()
    assert batcher.num_running == 0
    assert all(engine.closed.acquire(timeout=5) for _ in range(4))


def test_the_tokens_that_a_prefix_excludes_are_listed_once(own):
    engine = Chunks(chunk(40), chunk(None, stop="limit"))
    answered(own, engine, Request((1,), DRAWN, 0, prefix=RequiredPrefix("a", (1, 2))))
    first = [body["logit_bias"] for body in engine.bodies if body["n_predict"] == 1]
    assert len(first) == 6
    assert all(each is first[0] for each in first)
    excluded = {id for id, _ in first[0]}
    assert excluded == set(range(own.model.config.vocab_size)) - {1, 2}


@e2e
def test_time_that_is_up_ends_a_text(lm):
    settings = Generation(greedy=True, max_new_tokens=100)
    request = Request(lm.prompt_ids(PROMPT), settings, 0, max_seconds=0.0)
    assert isinstance(last := events_of(lm, request)[-1], Ended)
    assert last.reason == "time"


@e2e
def test_log_probabilities_are_those_of_our_engine(lm, own):
    request = Request(own.prompt_ids(PROMPT), GREEDY, 0, num_top_logprobs=3)
    found = [each.token for each in events_of(lm, request) if isinstance(each, NewToken)]
    right = [each.token for each in events_of(own, request) if isinstance(each, NewToken)]
    assert [token.id for token in found] == [token.id for token in right]
    for token, other in zip(found, right, strict=True):
        assert token.log_probability == pytest.approx(other.log_probability, abs=0.02)
        assert (token.rank, len(token.top_logprobs)) == (0, 3)


@e2e
def test_only_this_process_may_ask_its_llama_cpp(lm):
    """It listens on a port of this machine, which others can reach."""
    address = f"http://{lm._engine.address}/completion"
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(address, json.dumps({"prompt": [1], "n_predict": 1}).encode())
    assert error.value.code == 401
    error.value.close()


@e2e
@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (
            lambda lm: lm.batcher(1).check(Request((1,), GREEDY, 0, echo=True)),
            DataError,
            "llama.cpp gives no log-probabilities of a prompt",
        ),
        (lambda lm: lm.generate("a", greedy=True, num_beams=2), RecipeError, "no beam search"),
        (lambda lm: lm.slots(1), RecipeError, "gives no logits"),
        (lambda lm: lm.features("a"), ModelError, "has no 'features'"),
        (lambda lm: lm.generate("a " * 300), DataError, "the model takes 256 in total"),
    ],
    ids=["echo", "beams", "drafts", "features", "too long"],
)
def test_what_llama_cpp_does_not_give_is_refused(lm, act, kind, message):
    with pytest.raises(kind, match=message):
        act(lm)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("sample", "llama.cpp", None), ModelError, "sample is not one. Write one with"),
        (("x.gguf", "llama.cpp", "fp32"), RecipeError, "not in fp32"),
        (("x.gguf", "llama.cpp", "auto"), RecipeError, "not in auto"),
        (("sample", "vllm", None), RecipeError, "choose from stillhouse, llama.cpp"),
    ],
    ids=["no file", "float32", "auto", "engine"],
)
def test_what_llama_cpp_does_not_run_is_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        load_with_engine(*arguments, **SETTINGS)


def test_a_gpu_is_refused_where_somebody_asked_for_it():
    """Where there is one and nobody did, llama.cpp runs on the CPU beside it."""
    settings = {**SETTINGS, "device": torch.device("cuda")}
    with pytest.raises(RecipeError, match="Omit --device"):
        load_with_engine("sample", "llama.cpp", None, **settings, is_device_given=True)
    with pytest.raises(ModelError, match="sample is not one"):
        load_with_engine("sample", "llama.cpp", None, **settings)


def test_a_card_beside_a_single_file_is_not_the_model_s(tmp_path):
    (tmp_path / "README.md").write_text("# A\n\n## Limits\n\nOf what else lies here.\n")
    (tmp_path / "a.gguf").touch()
    assert _limitations(str(tmp_path / "a.gguf"), offline=True) == ""
    assert _limitations(str(tmp_path), offline=True) == "Of what else lies here."


def test_a_missing_package_is_named_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ModelError, match=r"--engine llama.cpp needs xllamacpp.*\[llama-cpp\]"):
        load_with_engine("x.gguf", "llama.cpp", None, **SETTINGS)


@e2e
def test_completions_and_chat_are_served(http, own, exported):
    body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    found = http.post("/v1/completions", json=body).json()
    assert found["choices"][0]["text"] == own.continuations(PROMPT, GREEDY)[0]
    assert found["usage"]["completion_tokens"] == 24
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 24, "temperature": 0}
    chat = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert chat["message"]["content"] == own.continuations(PROMPT, GREEDY)[0].strip()
    assert chat["finish_reason"] == "length"
    body = {"model": "model.gguf", "stream": False, "messages": body["messages"]}
    body["options"] = {"temperature": 0, "repeat_penalty": 1, "num_predict": 24}
    assert (
        http.post("/api/chat", json=body).json()["message"]["content"]
        == (chat["message"]["content"])
    )
    (model,) = http.get("/api/tags").json()["models"]
    assert (model["details"]["format"], model["details"]["quantization_level"]) == ("gguf", "F32")
    assert model["size"] == exported.stat().st_size


@e2e
def test_a_text_is_streamed_by_tokens(http, own):
    body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "stream": True}
    lines = http.post("/v1/completions", json=body).text.split("\n\n")
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    texts = [choice["text"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(texts) == own.continuations(PROMPT, GREEDY)[0]
    assert sum(map(bool, texts)) > 20


@e2e
@pytest.mark.parametrize("text", ["The old man went down to the har", 'print("'])
def test_suggestions_complete_a_word(http, own, text):
    """As our engine does: the token that the caret cuts off is chosen again."""
    body = {"model": "model.gguf", "text": text, "temperature": 0, "top_p": 1}
    found = http.post("/editor/suggestions", json={**body, "num_suggestions": 1}).text
    events = [json.loads(line[6:]) for line in found.split("\n\n") if line]
    with TestClient(application(("sample",), with_editor=True), base_url=URL) as other:
        right = other.post("/editor/suggestions", json={**body, "model": "sample"}).text
    expected = [json.loads(line[6:]) for line in right.split("\n\n") if line]
    assert "".join(e["text"] for e in events) == "".join(e["text"] for e in expected)


@e2e
def test_the_heat_map_is_refused_in_a_sentence(http):
    answer = http.post("/editor/surprisal", json={"model": "model.gguf", "text": "The sea"})
    assert answer.status_code == 400
    assert answer.json()["error"] == (
        "llama.cpp gives no log-probabilities of a prompt. Omit --engine, or give another model "
        "for it."
    )


@e2e
def test_an_end_token_ends_a_text(tmp_path):
    model = odd_model(tmp_path / "model", eos_token_id=[0, END])
    export_model(str(model), "gguf", tmp_path / "gguf", precision="fp32")
    found = LlamaCppLM(tmp_path / "gguf" / "model.gguf")
    assert END in found.end_ids
    own = stillhouse.load(model)
    settings = Generation(greedy=True, max_new_tokens=100)
    text = "The Python interpreter"
    assert found.continuations(text, settings) == own.continuations(text, settings)


@pytest.fixture(scope="module")
def smollm2(smollm2_folder):
    return stillhouse.load(smollm2_folder)


@e2e
def test_smollm2_in_half_precision_answers_as_by_our_engine(smollm2, smollm2_folder, tmp_path):
    """Nothing rounds to eight bits there: the same tokens of the template, and of the answer."""
    exported = plain(smollm2, vocabulary_of(str(smollm2_folder), smollm2))
    format_named("gguf").write(exported, tmp_path, "fp16")
    lm = load_llama_cpp(str(tmp_path))
    assert lm.precision == "F16"
    assert lm.end_ids == smollm2.end_ids
    for question in QUESTIONS:
        settings = {"greedy": True, "max_new_tokens": 40}
        assert lm.chat(question, **settings) == smollm2.chat(question, **settings)


@e2e
def test_the_quantized_smollm2_differs_at_near_ties_alone(smollm2):
    """llama.cpp rounds activations, which moves a log-probability by 0.06 nats on average; where
    its greedy text parts from ours, its token is less likely by a few times that at most."""
    lm = load_llama_cpp("smollm2")
    assert lm.precision == "Q4_1"
    for question in QUESTIONS:
        prompt = lm.chat_prompt([{"role": "user", "content": question}])
        assert prompt == smollm2.chat_prompt([{"role": "user", "content": question}])
        found = [each.token.id for each in events_of(lm, Request(prompt.ids, GREEDY, 0))[1:-1]]
        with torch.inference_mode():
            logits = smollm2.model(torch.tensor([[*prompt.ids, *found]])).logits[0]
        scores = logits[len(prompt.ids) - 1 : -1].log_softmax(-1)
        gaps = scores.amax(1) - scores.gather(1, torch.tensor(found)[:, None])[:, 0]
        assert gaps.max() < 0.3


@e2e
def test_a_stop_and_the_end_of_a_turn_end_smollm2(smollm2):
    lm = load_llama_cpp("smollm2")
    (answer,) = lm.chat("Say hi.", greedy=True, max_new_tokens=100)
    assert len(lm.encode(answer)) < 90
    assert "<|im_end|>" not in answer


@e2e
def test_tokens_inside_characters_are_known(smollm2):
    """llama.cpp streams whole characters alone; what it answers at once has every token."""
    lm, settings = load_llama_cpp("smollm2"), Generation(greedy=True, max_new_tokens=20)
    request = Request(lm.prompt_ids("Emoji: 😀😀😀😀 日本語 日本語 日本"), settings, 0)
    events_of(lm, request)  # so that both have the prompt in the cache
    events = events_of(lm, request)
    found = [each.token.id for each in events if isinstance(each, NewToken)]
    body = _body(request, 0, request.prompt_ids, 20, ())
    assert found == lm._engine.post("/completion", body)["tokens"][: len(found)]
    assert len(found) > 17  # those of a character that is cut off at the end are lost
    assert sum("\ufffd" in lm.decode([id]) for id in found) > 10
    text = "".join(each.text for each in events if isinstance(each, NewToken | Ended))
    assert text == lm.decode([*request.prompt_ids, *found])[len(lm.decode(request.prompt_ids)) :]
