"""Text samples: continuations of the same prompts by each model, with the same seed."""

from collections.abc import Collection, Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.families.base import Family
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.generation import Generation
from stillhouse.inference.load import language_model
from stillhouse.inference.masked_lm import MaskedLM
from stillhouse.recipe import Recipe
from stillhouse.runs.paths import RunFolder
from stillhouse.tokens.shards import open_split
from stillhouse.tokens.tokenizer import open_tokenizer, special_tokens

NUM_SAMPLES = 3
PROMPT_TOKENS = 24
NEW_TOKENS = 60
DIVERGED = "(nothing: this model diverged)"


def text_samples(
    recipe: Recipe,
    run: RunFolder,
    models: Mapping[str, tuple[Family, PreTrainedModel]],
    diverged: Collection[str],
) -> list[dict[str, Any]]:
    """Beginnings of held-out documents, continued by each model, or with a masked word filled in;
    not by those that `diverged`."""
    tokenizer = open_tokenizer(run.tokens)
    loaded = {name: language_model(model, tokenizer) for name, (_, model) in models.items()}
    prompts = _prompts(run, tokenizer, recipe.tokens.language_modeling == "masked")
    return [
        {
            "prompt": prompt,
            "continuations": {
                name: DIVERGED if name in diverged else _complete(model, prompt, recipe.seeds[0])
                for name, model in loaded.items()
            },
        }
        for prompt in prompts
    ]


def _prompts(run: RunFolder, tokenizer: PreTrainedTokenizerFast, masked: bool) -> list[str]:
    """The beginnings of the longest held-out documents; for masked models with one word masked."""
    split = open_split(run.tokens, "validation")
    starts = split.document_starts.astype(int)
    longest = sorted(range(split.num_documents), key=lambda i: starts[i] - starts[i + 1])[
        :NUM_SAMPLES
    ]
    prefix = 0 if masked else len(special_tokens(tokenizer, "causal").document_prefix)
    prompts = []
    for number in longest:
        start = int(starts[number]) + prefix
        ids = split.read(start, min(start + PROMPT_TOKENS, int(starts[number + 1]))).tolist()
        if masked and len(ids) > 2:
            assert tokenizer.mask_token_id is not None
            ids[len(ids) // 2] = tokenizer.mask_token_id
        prompts.append(tokenizer.decode(ids))
    return prompts


def _complete(model: CausalLM | MaskedLM, prompt: str, seed: int) -> str:
    if isinstance(model, MaskedLM):
        best = model.fill_mask(prompt)
        return ", ".join(f"{token} ({probability:.0%})" for token, probability, _ in best)
    room = model.context - len(model.encode(prompt))
    settings = Generation(max_new_tokens=max(1, min(NEW_TOKENS, room)), temperature=0.8, seed=seed)
    return model.continuations(prompt, settings)[0]
