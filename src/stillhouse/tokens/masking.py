"""Masking: which tokens a masked language model must predict, and what stands in their place.

A fraction of the positions is drawn without replacement, rare tokens favored: the chance of a
token goes with count^-rarity_exponent (Sanh et al. 2019, after XLM). Special tokens are never
drawn. Of the drawn ones most become the mask token, some stay, some become a random word. The draw
is made anew at every visit and follows from (seed, epoch, sequence) alone.

Axes: B sequences, T positions.
"""

import math

import numpy as np

from stillhouse.tokens.batches import IGNORED, visit_key
from stillhouse.tokens.settings import MaskingRecipe
from stillhouse.tokens.tokenizer import SpecialTokens


class Masker:
    """Draws and applies masks with the corpus's own token counts."""

    def __init__(
        self,
        recipe: MaskingRecipe,
        special: SpecialTokens,
        vocabulary_size: int,
        counts: np.ndarray,
    ) -> None:
        self.recipe = recipe
        self.mask_id = special.mask
        weights = (
            np.maximum(counts[:vocabulary_size].astype(np.float64), 1) ** -recipe.rarity_exponent
        )
        weights[list(special.all_ids)] = 0
        self.weights = weights
        self.words = np.flatnonzero(weights)

    def mask(
        self,
        inputs: np.ndarray,
        segments: np.ndarray,
        sequences: np.ndarray,
        epochs: np.ndarray,
        seed: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Corrupted inputs and their labels, both (B, T); positions with segment 0 are padding."""
        weights = np.where(segments > 0, self.weights[inputs], 0)
        if self.recipe.sampling == "per_batch":
            key = visit_key(seed, int(epochs[0]), 2**63 + int(sequences[0]))
            num_drawn = math.ceil(self.recipe.fraction * np.count_nonzero(segments))
            flat = self._corrupt(inputs.reshape(-1), weights.reshape(-1), num_drawn, key)
            return flat[0].reshape(inputs.shape), flat[1].reshape(inputs.shape)
        masked, labels = np.empty_like(inputs), np.empty_like(inputs)
        for row in range(len(inputs)):
            key = visit_key(seed, int(epochs[row]), int(sequences[row]))
            num_drawn = max(1, round(self.recipe.fraction * np.count_nonzero(weights[row])))
            masked[row], labels[row] = self._corrupt(inputs[row], weights[row], num_drawn, key)
        return masked, labels

    def _corrupt(
        self, inputs: np.ndarray, weights: np.ndarray, num_drawn: int, key: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw `num_drawn` of the positions with a weight, and replace them by the recipe's
        shares."""
        generator = np.random.Generator(np.random.Philox(key=key))
        candidates = np.flatnonzero(weights)
        # The smallest exponential(1)/weight are a draw without replacement (Efraimidis and Spirakis
        # 2006).
        races = generator.exponential(size=len(inputs))[candidates] / weights[candidates]
        num_drawn = min(num_drawn, len(candidates))
        drawn = candidates[np.argsort(races, kind="stable")[:num_drawn]]
        fates = generator.random(len(inputs))[drawn]
        words = generator.choice(self.words, size=len(inputs))[drawn]
        masked, labels = inputs.copy(), np.full_like(inputs, IGNORED)
        labels[drawn] = inputs[drawn]
        to_mask = fates < self.recipe.mask_fraction
        to_word = fates >= self.recipe.mask_fraction + self.recipe.keep_fraction
        masked[drawn[to_mask]] = self.mask_id
        masked[drawn[to_word]] = words[to_word]
        return masked, labels
