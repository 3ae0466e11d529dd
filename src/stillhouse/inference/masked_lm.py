"""A masked language model: fills a mask token."""

from numbers import Integral
from typing import Any, NamedTuple

import torch

from stillhouse.errors import DataError, RecipeError
from stillhouse.inference.arguments import checked_arguments, texts_of
from stillhouse.inference.loaded import LoadedModel


class Filled(NamedTuple):
    """A candidate for the mask token."""

    text: str
    probability: float
    id: int


class MaskedLM(LoadedModel):
    """A model that predicts masked tokens."""

    pipeline_task = "fill-mask"

    @checked_arguments
    def fill_mask(self, text: Any, *, top_k: Any = 5) -> Any:
        """The `top_k` most likely tokens for the one mask token in the text, with their
        probabilities: a list of `Filled`; for a list of texts, one such list per text.

        Raises:
            RecipeError: `top_k` is not a positive integer.
            DataError: a text has no mask token, more than one, or too many tokens.
        """
        texts, single = texts_of(text, "text")
        if isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1:
            raise RecipeError(f"top_k is {top_k!r}; it must be a whole number, 1 or more.")
        filled = [self._fill_mask(each, int(top_k)) for each in texts]
        return filled[0] if single else filled

    @torch.inference_mode()
    def _fill_mask(self, text: str, top_k: int) -> list[Filled]:
        if self.tokenizer.mask_token_id is None:
            raise DataError("The model's tokenizer has no mask token; give a model that has one.")
        mask_id = torch.tensor(self.tokenizer.mask_token_id, device=self.model.device)
        ids = torch.tensor(self.tokenizer(text)["input_ids"], device=self.model.device)
        if len(ids) > self.context:
            raise DataError(f"The text has {len(ids)} tokens; the model takes {self.context}.")
        positions = torch.eq(ids, mask_id).nonzero().flatten()
        if len(positions) != 1:
            raise DataError(
                f"The text has {len(positions)} mask tokens ({self.tokenizer.mask_token}); give "
                "exactly one."
            )
        hidden = self.model.base_model(input_ids=ids[None]).last_hidden_state[0, positions]
        head = self.family.head(self.model)
        logits = head.logits(head.transform(hidden))[0]
        gaps = [id for id in self.unused_ids if id < len(logits)]  # padding rows are cut off
        unused = torch.tensor(gaps, dtype=torch.long, device=logits.device)
        known = logits.float().index_fill(0, unused, -torch.inf)
        best = known.softmax(-1).topk(min(top_k, len(known) - len(unused)))
        return [
            Filled(self.decode([token]).strip(), probability, token)
            for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
