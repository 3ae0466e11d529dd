"""llama.cpp as the engine of a GGUF file: tokens, text, probabilities, and end of text.

Keys and values are float32 and flash attention is off, so its numbers differ from the model's only
by the file's precision and llama.cpp's GELU.
"""

import http.client
import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import xllamacpp
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.errors import ModelError

llama: Any = xllamacpp  # a C++ module without types

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
        stops: Iterable[int],
        activation: nn.Module | None = None,
        *,
        exact: bool = True,
    ) -> None:
        """Load a file.

        Args:
            context: The longest text, in tokens.
            stops: Tokens that may end a text; each is tested.
            activation: llama.cpp's variant of the model's activation function, if it has one.
            exact: Keep keys and values in float32, without flash attention; otherwise llama.cpp
                takes its own settings.

        Raises:
            ModelError: llama.cpp does not load it.
        """
        self.activation = activation
        try:
            self._server = llama.Server(_settings(path, context, exact=exact))
        except Exception as error:  # the bindings raise what C++ threw
            raise ModelError(f"llama.cpp does not load {path}: {error}") from error
        self._address = urlsplit(self._server.listening_address).netloc
        self.end_ids = frozenset(token for token in stops if self._stops_at(token))

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

    def _stops_at(self, token: int) -> bool:
        found = self.complete([token], 2, logit_bias=[[token, FORCED]])
        return found["finish_reason"] == "stop"

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
        with closing(http.client.HTTPConnection(self._address, timeout=60)) as connection:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body).encode(), headers)
            return json.loads(connection.getresponse().read())


def _settings(path: Path, context: int, *, exact: bool) -> Any:
    settings = llama.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = context, 1, 0
    if exact:
        settings.cache_type_k = settings.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = torch.get_num_threads()
    settings.fit_params = settings.warmup = settings.ui = False
    settings.cache_ram_mib = 0
    settings.verbosity = -1
    return settings
