"""How a text is continued: the settings that people know, checked once, whoever asks."""

import math
import secrets
from dataclasses import dataclass

from stillhouse.errors import RecipeError


@dataclass(frozen=True)
class Generation:
    """How a text is continued. With a seed, sampling gives the same texts again, whatever else runs
    beside it; greedy needs none.

    The settings below `temperature` leave tokens out, in this order; what is left is drawn from.

    Attributes:
        temperature: Logits are divided by it: below 1 is safer, above 1 wilder.
        top_k: Only the k likeliest tokens; 0 for all.
        top_p: Only the likeliest tokens that together have this probability (Holtzman et al. 2020).
        min_p: Only tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024).
        typical_p: Only the tokens whose surprise is nearest to the one expected, that together have
            this probability (Meister et al. 2023).
        repetition_penalty: Logits of tokens that are there already are divided by it where they are
            positive, and multiplied where negative (Keskar et al. 2019).
        num_beams: Above 1, beam search, which keeps this many texts and gives the likeliest whole.
        stop: Texts that end a continuation; they are not part of it.
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
        for name in ("num_return_sequences", "num_beams"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        for name in ("max_new_tokens", "top_k"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        for name in ("temperature", "repetition_penalty"):
            if not 0 < getattr(self, name) < math.inf:
                hint = " (greedy takes the likeliest token)" if name == "temperature" else ""
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be above 0{hint}.")
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                raise RecipeError(
                    f"{name} is {getattr(self, name)}; it must be above 0 and at most 1."
                )
        if not 0 <= self.min_p <= 1:
            raise RecipeError(f"min_p is {self.min_p}; it must be 0 to 1.")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise RecipeError(f"seed is {self.seed}; it must be 0 or more, and below 2**64.")
        if "" in self.stop:
            raise RecipeError("A text in stop is empty; give one that can be found, or none.")
        self._check_together()

    def _check_together(self) -> None:
        if self.num_beams > 1:
            if not self.greedy:
                raise RecipeError("Beam search does not sample: set greedy, or num_beams to 1.")
            if self.num_return_sequences > self.num_beams:
                raise RecipeError(
                    f"num_return_sequences is {self.num_return_sequences}, but beam search keeps "
                    f"{self.num_beams}; ask for more beams, or fewer sequences."
                )
        elif self.greedy and self.num_return_sequences > 1:
            raise RecipeError("greedy gives one text only; drop greedy, or ask for one sequence.")

    def drawn_seed(self) -> int:
        """The seed, or one drawn from the system where none was given."""
        return secrets.randbits(64) if self.seed is None else self.seed
