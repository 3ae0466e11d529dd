"""llama.cpp with a GGUF file, in this process: tokens, text, probabilities, and end of text.

It is its server that runs, on a port of this machine that takes a random key. To compare with, keys
and values are float32 and flash attention is off, so its numbers differ from the model's only by
the file's precision and llama.cpp's GELU; to serve, it has its own settings.
"""

import http.client
import json
import secrets
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import xllamacpp
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.errors import ModelError

llama: Any = xllamacpp  # a C++ module without types

SECONDS = 600  # without a byte from llama.cpp, which reads a prompt before its first token
FORCED = 1e9  # a logit bias that forces a token; log-probabilities are those without it


class TableGelu(nn.Module):
    """llama.cpp's GELU on the CPU: a table from half-precision inputs to half-precision outputs; 0
    up to -10, the identity from 10. In most models it changes a log-probability by 0.002 nats at
    most, in one with very sharp attention by ten times that."""

    def forward(self, inputs: Tensor) -> Tensor:
        entries = functional.gelu(inputs.half().float(), approximate="tanh").half().float()
        return torch.where(inputs <= -10, 0.0, torch.where(inputs >= 10, inputs, entries))


class LlamaCpp:
    """A model in llama.cpp's server, in this process."""

    def __init__(
        self,
        path: Path,
        context: int,
        activation: nn.Module | None = None,
        *,
        exact: bool = True,
        num_slots: int = 1,
    ) -> None:
        """Load a file.

        Args:
            context: The longest text, in tokens.
            activation: llama.cpp's variant of the model's activation function, if it has one.
            exact: Keep keys and values in float32, without flash attention; otherwise llama.cpp
                takes its own settings.
            num_slots: Texts that are generated at once, each of this context.

        Raises:
            ModelError: llama.cpp does not load it.
        """
        self.activation, self.context, self.num_slots = activation, context, num_slots
        self._key = secrets.token_urlsafe()
        settings = _settings(path, num_slots * context, num_slots, exact=exact)
        settings.api_keys = [self._key]
        try:
            self._server = llama.Server(settings)
        except Exception as error:  # the bindings raise what C++ threw
            raise ModelError(f"llama.cpp does not load {path}: {error}") from error
        self.address = urlsplit(self._server.listening_address).netloc
        self.end_ids = self._end_ids()

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        found = []
        for length in range(1, len(ids)):
            completion = self.complete(ids[:length], 1, logit_bias=[[ids[length], FORCED]])
            (token,) = completion["logprobs"]["content"]
            assert token["id"] == ids[length], "llama.cpp sampled another token than the forced one"
            found.append(token["logprob"])
        return found

    def generate(self, ids: Sequence[int], number: int) -> list[int]:
        """Greedy tokens, past those that end a text. (OpenAI's form leaves out tokens that end
        within a character.)"""
        request = {
            "prompt": list(ids),
            "n_predict": number,
            "temperature": 0,
            "ignore_eos": True,
            "return_tokens": True,
            "cache_prompt": False,
        }
        return self.post("/completion", request)["tokens"]

    def tokens_of(self, text: str) -> list[int]:
        body = {"content": text, "add_special": False, "parse_special": True}
        return self.post("/tokenize", body)["tokens"]

    def text_of(self, ids: Sequence[int]) -> str:
        return self.post("/detokenize", {"tokens": list(ids)})["content"]

    def _end_ids(self) -> frozenset[int]:
        """The tokens at which llama.cpp ends a text: those that it suppresses where a request says
        to ignore them."""
        request = {"prompt": [0], "n_predict": 1, "ignore_eos": True}
        biases = self.post("/completion", request)["generation_settings"]["logit_bias"]
        return frozenset(bias["token"] for bias in biases)

    def complete(self, ids: Sequence[int], number: int, **settings: Any) -> dict[str, Any]:
        """Greedy next tokens, by default up to the first that ends the text, in the form of
        OpenAI's completions. `settings` are llama.cpp's."""
        request = {
            "prompt": list(ids),
            "n_predict": number,
            "temperature": 0,
            "logprobs": 1,
            "cache_prompt": True,
            **settings,
        }
        (choice,) = self._server.handle_completions(request)["choices"]
        return choice

    def post(self, path: str, body: Any) -> dict[str, Any]:
        """The response of one of llama.cpp's other routes."""
        with self._response(path, body) as response:
            return json.loads(response.read())

    def stream(self, body: Any) -> Generator[dict[str, Any], None, None]:
        """The chunks of llama.cpp's own route for completions, as they come; an error is one with
        the key `error`. Closing the iterator ends the work on them.

        Raises:
            OSError, ValueError: the connection or its content failed.
        """
        with self._response("/completion", {**body, "stream": True}) as response:
            if response.status != http.HTTPStatus.OK:
                yield json.loads(response.read())
                return
            for line in response:
                kind, _, data = line.partition(b": ")
                if kind == b"data":
                    yield json.loads(data)
                elif kind == b"error":
                    yield {"error": json.loads(data)}

    @contextmanager
    def _response(self, path: str, body: Any) -> Iterator[http.client.HTTPResponse]:
        with closing(http.client.HTTPConnection(self.address, timeout=SECONDS)) as connection:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
            connection.request("POST", path, json.dumps(body).encode(), headers)
            yield connection.getresponse()


def _settings(path: Path, context: int, num_slots: int, *, exact: bool) -> Any:
    settings = llama.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = context, num_slots, 0
    if exact:
        settings.cache_type_k = settings.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = torch.get_num_threads()
    settings.fit_params = settings.warmup = settings.ui = False
    settings.cache_ram_mib = 0
    # A cache of the window alone is restored wrongly for a second text (xllamacpp 2026.10).
    settings.swa_full = True
    settings.verbosity = -1
    return settings
