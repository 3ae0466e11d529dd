"""Masking: which tokens a masked language model must predict, and what replaces them.

A fraction of the positions is sampled without replacement, with weights count^-rarity_exponent that
favor rare tokens (Sanh et al. 2019, after XLM). Special tokens are never sampled. Of the sampled
tokens most become the mask token, some are kept, some become a random word. Masks are dynamic: they
follow from (seed, epoch, sequence) alone.

Axes: B sequences, T positions.
"""

import math

import numpy as np

from stillhouse.tokens.batches import IGNORED, sample_key
from stillhouse.tokens.settings import MaskingRecipe
from stillhouse.tokens.tokenizer import SpecialTokens


class Masker:
    """Samples and applies masks, weighted by the token counts of the corpus."""

    def __init__(
        self,
        recipe: MaskingRecipe,
        special: SpecialTokens,
        vocabulary_size: int,
        counts: np.ndarray,
    ) -> None:
        self.recipe = recipe
        self.mask_id = special.mask
        counts = np.maximum(counts[:vocabulary_size].astype(np.float64), 1)
        self.weights = counts**-recipe.rarity_exponent
        self.weights[list(special.all_ids)] = 0
        self.words = np.flatnonzero(self.weights)

    def mask(
        self,
        inputs: np.ndarray,
        segments: np.ndarray,
        sequences: np.ndarray,
        epochs: np.ndarray,
        seed: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Masked inputs and their labels, both (B, T); positions with segment 0 are padding."""
        weights = np.where(segments > 0, self.weights[inputs], 0)
        if self.recipe.sampling == "per_batch":
            key = sample_key(seed, int(epochs[0]), 2**63 + int(sequences[0]))
            num_sampled = math.ceil(self.recipe.fraction * np.count_nonzero(segments))
            flat = self._corrupt(inputs.reshape(-1), weights.reshape(-1), num_sampled, key)
            return flat[0].reshape(inputs.shape), flat[1].reshape(inputs.shape)
        masked, labels = np.empty_like(inputs), np.empty_like(inputs)
        for row in range(len(inputs)):
            key = sample_key(seed, int(epochs[row]), int(sequences[row]))
            num_sampled = max(1, round(self.recipe.fraction * np.count_nonzero(weights[row])))
            masked[row], labels[row] = self._corrupt(inputs[row], weights[row], num_sampled, key)
        return masked, labels

    def _corrupt(
        self, inputs: np.ndarray, weights: np.ndarray, num_sampled: int, key: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sample positions in proportion to their weights, and replace them as the recipe says."""
        generator = np.random.Generator(np.random.Philox(key=key))
        candidates = np.flatnonzero(weights)
        # The smallest exponential(1)/weight are a weighted sample without replacement (Efraimidis
        # and Spirakis 2006).
        times = generator.exponential(size=len(inputs))[candidates] / weights[candidates]
        num_sampled = min(num_sampled, len(candidates))
        sampled = candidates[np.argsort(times, kind="stable")[:num_sampled]]
        choices = generator.random(len(inputs))[sampled]
        words = generator.choice(self.words, size=len(inputs))[sampled]
        masked, labels = inputs.copy(), np.full_like(inputs, IGNORED)
        labels[sampled] = inputs[sampled]
        to_mask = choices < self.recipe.mask_fraction
        to_word = choices >= self.recipe.mask_fraction + self.recipe.keep_fraction
        masked[sampled[to_mask]] = self.mask_id
        masked[sampled[to_word]] = words[to_word]
        return masked, labels
