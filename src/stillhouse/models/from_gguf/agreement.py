"""Whether a model that was read from a GGUF file is the one that llama.cpp runs.

Tokens must be equal. Log-probabilities of a passage must agree within the rounding of llama.cpp,
which for quantized weights rounds the activations too (0.06 to 0.08 nats on SmolLM2 in Q4_1, and
0.0001 on the same weights in float32); a wrong rotation, norm or layout changes them by nats.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from stillhouse.errors import ModelError
from stillhouse.models.from_gguf.file import GGUFFile
from stillhouse.models.llama_cpp import LlamaCpp
from stillhouse.models.load import load_model
from stillhouse.tokens.encoders import ODD_TEXTS

PASSAGE = """\
The river ran past the old mill, and in 1984 nobody in the village remembered who had built it.
def area(width, height):
    return width * height
"""
CONTEXT = 128
MEAN_BOUND, QUANTIZED_MEAN_BOUND = 0.02, 0.2  # nats
MAX_TOKENS = 256  # added tokens that are tested


@dataclass(frozen=True)
class Reference:
    """llama.cpp with the file, to compare with."""

    file: GGUFFile
    engine: LlamaCpp

    def check_tokens(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Compare the tokens of difficult texts.

        Raises:
            ModelError: they differ.
        """
        for text in _texts(tokenizer):
            body = {"content": text, "add_special": True, "parse_special": True}
            expected = self.engine.post("/tokenize", body)["tokens"]
            found = tokenizer(text)["input_ids"]
            if found != expected:
                raise ModelError(
                    f"{self.file.path}: the text {text[:40]!r} is {expected[:12]} in llama.cpp "
                    f"and {found[:12]} by the rules in the file. Give the model as a folder with "
                    "tokenizer.json."
                )

    def check_log_probabilities(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> float:
        """Compare the model in `folder`; returns the mean difference in nats.

        Raises:
            ModelError: it is larger than rounding explains.
        """
        ids = tokenizer(PASSAGE, add_special_tokens=False)["input_ids"][: self.engine.context]
        expected = torch.tensor(self.engine.log_probabilities(ids))
        _, model = load_model(folder, tokenizer)
        with torch.inference_mode():
            logits = model(torch.tensor([ids[:-1]])).logits[0].float()
        found = logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
        mean = float((found - expected).abs().mean())
        bound = QUANTIZED_MEAN_BOUND if self.file.is_quantized else MEAN_BOUND
        if not mean <= bound:
            raise ModelError(
                f"{self.file.path}: the log-probabilities of a passage differ from llama.cpp's by "
                f"{mean:.3f} nats on average, where rounding explains {bound}. The file asks for "
                "something that Stillhouse does not compute; give the model as a folder of "
                "safetensors."
            )
        return mean


def _texts(tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    yield from (text for text in ODD_TEXTS if text)
    for token in list(tokenizer.get_added_vocab())[:MAX_TOKENS]:
        yield f"a {token}b{token} {token}\n"
