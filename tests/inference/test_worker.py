"""One thread for the work of a model: requests and other work, from any thread."""

import queue
import threading

import pytest

import stillhouse
from stillhouse.errors import ResourceError
from stillhouse.inference.engine.batcher import Ended, Failed, NewToken, PrefillDone, Request
from stillhouse.inference.engine.worker import Worker
from stillhouse.inference.generation import Generation

GREEDY = Generation(greedy=True, max_new_tokens=20)


@pytest.fixture
def sample():
    return stillhouse.load("sample", offline=True)


@pytest.fixture
def worker(sample):
    worker = Worker()
    worker.add(sample.batcher(4))
    yield worker
    worker.close()


@pytest.fixture
def batcher(worker, sample):
    """A second one, beside the first."""
    batcher = sample.batcher(4)
    worker.add(batcher)
    return batcher


def answered(worker, batcher, loaded, prompt):
    """The text that a request of its own thread gets."""
    events = queue.Queue()
    worker.submit(batcher, Request(loaded.prompt_ids(prompt), GREEDY, 0), events.put)
    text = prompt
    while True:
        event = events.get(timeout=30)
        if isinstance(event, NewToken | Ended):
            text += event.text
        if isinstance(event, Ended | Failed):
            return text


def test_requests_of_many_threads_are_answered(worker, batcher, sample):
    """Each with its own text."""
    prompts = [f"def name_{number}(" for number in range(6)]
    found = {}
    threads = [
        threading.Thread(
            target=lambda p=p: found.__setitem__(p, answered(worker, batcher, sample, p))
        )
        for p in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt in prompts:
        assert [found[prompt]] == sample.generate(prompt, greedy=True, max_new_tokens=20)


def test_other_work_is_done_between_two_steps(worker, batcher, sample):
    """While a text is under way; its result and its error come back."""
    events = queue.Queue()
    worker.submit(batcher, Request(sample.prompt_ids("def "), GREEDY, 0), events.put)
    assert worker.call(lambda: threading.current_thread().name).result(timeout=30) == "model"
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0).result(timeout=30)
    while not isinstance(events.get(timeout=30), Ended):
        pass


def test_a_text_that_cannot_begin_is_told_so(worker, batcher, sample, monkeypatch):
    """Its prompt has been read; its room is free again."""

    def refuse(*_: object) -> None:
        raise MemoryError("full")

    events = queue.Queue()
    with monkeypatch.context() as patched:
        patched.setattr("stillhouse.inference.engine.batcher.TextStream", refuse)
        worker.submit(batcher, Request(sample.prompt_ids("def "), GREEDY, 0), events.put)
        assert isinstance(events.get(timeout=30), PrefillDone)
        assert isinstance(events.get(timeout=30), Failed)
    (expected,) = sample.generate("def ", greedy=True, max_new_tokens=20)
    assert answered(worker, batcher, sample, "def ") == expected
    assert batcher.model.num_free == 4


def test_a_step_that_fails_ends_what_was_under_way(worker, batcher, sample):
    """With an error for each request; the next one is answered."""
    model = batcher.model.model
    layer = model.get_submodule("transformer.ln_f")
    hook = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError("full")))
    events = queue.Queue()
    worker.submit(batcher, Request(sample.prompt_ids("def "), GREEDY, 0), events.put)
    failed = events.get(timeout=30)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ResourceError)
    assert "full" in str(failed.error)
    hook.remove()
    (expected,) = sample.generate("def ", greedy=True, max_new_tokens=20)
    assert answered(worker, batcher, sample, "def ") == expected
    assert batcher.model.num_free == 4
