"""Settings of text generation, validated once for the Python API, the command line and HTTP."""

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import RecipeError

# Which values a setting takes, and those values in words.
VALID: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "num_return_sequences": (lambda value: value >= 1, "1 or more"),
    "num_beams": (lambda value: value >= 1, "1 or more"),
    "max_new_tokens": (lambda value: value >= 0, "0 or more"),
    "top_k": (lambda value: value >= 0, "0 or more"),
    "temperature": (
        lambda value: 0 < value < math.inf,
        "above 0 (greedy takes the most likely token)",
    ),
    "repetition_penalty": (lambda value: 0.01 <= value <= 100, "0.01 to 100"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "typical_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "0 to 1"),
    "seed": (lambda value: value is None or 0 <= value < 2**64, "0 or more, and below 2**64"),
}


@dataclass(frozen=True)
class Generation:
    """Settings of text generation. With a seed, sampling is reproducible, whatever else is in the
    batch; greedy decoding needs no seed.

    The filters from `top_k` to `typical_p` apply in this order; the next token is sampled from
    what remains.

    Attributes:
        temperature: Divides the logits; below 1 is safer, above 1 more varied.
        top_k: Keep the k most likely tokens; 0 for all.
        top_p: Keep the most likely tokens that together have this probability (Holtzman et al.
            2020).
        min_p: Keep tokens at least this fraction as likely as the most likely one (Nguyen et al.
            2024).
        typical_p: Keep the tokens whose surprisal is closest to the entropy, that together have
            this probability (Meister et al. 2023).
        repetition_penalty: Divides positive logits, and multiplies negative logits, of tokens that
            are in the text already (Keskar et al. 2019).
        num_beams: Above 1, beam search, which keeps this many texts and returns the most likely.
        stop: Strings that end a continuation, and are not part of it.
    """

    max_new_tokens: int = 50
    num_return_sequences: int = 1
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    greedy: bool = False
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (is_valid, values) in VALID.items():
            if not is_valid(value := getattr(self, name)):
                raise RecipeError(f"{name} is {value}; it must be {values}.")
        if "" in self.stop:
            raise RecipeError("A text in stop is empty; leave it out.")
        if self.num_beams > 1 and not self.greedy:
            raise RecipeError("Beam search does not sample: set greedy, or num_beams to 1.")
        if 1 < self.num_beams < self.num_return_sequences:
            raise RecipeError(
                f"num_return_sequences is {self.num_return_sequences}, but beam search keeps "
                f"{self.num_beams}; ask for more beams, or fewer sequences."
            )
        if self.greedy and self.num_beams == 1 < self.num_return_sequences:
            raise RecipeError("greedy gives one text only; drop greedy, or ask for one sequence.")

    def drawn_seed(self) -> int:
        """The seed, or a random one if there is none."""
        return secrets.randbits(64) if self.seed is None else self.seed
