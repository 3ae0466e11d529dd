"""Which family a model belongs to: what `probe` finds of its architecture, and what differs."""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from importlib import import_module

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from stillhouse.errors import ModelError, RecipeError
from stillhouse.families.architectures import deberta_v2, roberta
from stillhouse.families.architectures.llama import token_runner
from stillhouse.families.attention import window_in_every_layer
from stillhouse.families.base import Family
from stillhouse.families.probe import probe
from stillhouse.families.settings import CAUSAL, FAMILY_NAMES, WITH_FILES
from stillhouse.tokens.settings import TokensRecipe

# Architectures that differ by little from what `probe` finds; others have files in `architectures`.
GROUPED = {"num_key_value_heads": 1}
DIFFERENCES = {
    "mistral": partial(
        Family,
        token_runner=lambda model: token_runner(model, window_in_every_layer(model.config)),
        window=window_in_every_layer,
        tiny={**GROUPED, "sliding_window": 7},
    ),
    "qwen2": partial(
        Family,
        token_runner=token_runner,
        tiny={**GROUPED, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": partial(Family, token_runner=token_runner, tiny={**GROUPED, "head_dim": 6}),
    "gemma2": partial(
        Family,
        scales_embeddings=True,
        tiny={
            **GROUPED,
            "sliding_window": 7,
            "attn_logit_softcapping": 0.5,
            "final_logit_softcapping": 0.5,
        },
    ),
    "gemma3_text": partial(
        Family,
        scales_embeddings=True,
        tiny={**GROUPED, "sliding_window": 7, "sliding_window_pattern": 2},
    ),
    "phi3": partial(Family, window=window_in_every_layer, tiny={**GROUPED, "sliding_window": 7}),
    # Its layers flatten their rows before the feed-forward part.
    "opt": partial(Family, position_wise=("self_attn.out_proj",)),
    # Queries, keys and values of a head are side by side: those of all heads cannot be separated.
    "gpt_neox": partial(Family, attention_projections=()),
    "xlm-roberta": roberta.FAMILY,
    "camembert": roberta.FAMILY,
    # The generator; a discriminator is the body of a task.
    "electra": partial(
        Family,
        head_transform=lambda model, hidden: model.generator_predictions(hidden),
        ignored_on_load=(r"\.position_ids$",),
        tiny={"embedding_size": 12},
    ),
    # Computes its attention itself; the padding id of its positions is 1 whatever the vocabulary's.
    "mpnet": partial(
        Family,
        head_transform=roberta.head_transform,
        position_offset=lambda config: 2,
        adds_mask=True,
        ignored_on_load=(r"^mpnet\.pooler\.", r"\.position_ids$"),
    ),
    "modernbert": partial(
        Family,
        head_transform=lambda model, hidden: model.head(hidden),
        tiny={"local_attention": 8},
    ),
    "deberta-v2": deberta_v2.FAMILY,
}


@cache
def family_named(model_type: str) -> Family:
    """The family of a transformers `model_type`.

    Raises:
        ModelError: the architecture is not supported.
    """
    if model_type not in FAMILY_NAMES:
        raise ModelError(
            f"The architecture {model_type!r} is not supported{_reason(model_type)}; supported are "
            f"{', '.join(FAMILY_NAMES)}."
        )
    own = DIFFERENCES.get(model_type, partial(Family))
    if model_type in WITH_FILES:
        own = import_module(f"stillhouse.families.architectures.{model_type}").FAMILY
    kind = "causal" if model_type in CAUSAL else "masked"
    found = probe(model_type, kind, own.keywords.get("published", {}))
    return own(**{name: each for name, each in found.items() if name not in own.keywords})


def _reason(model_type: str) -> str:
    """In brackets, why an architecture cannot be a family, where its configuration shows it."""
    if model_type not in CONFIG_MAPPING:
        return ""
    config = AutoConfig.for_model(model_type)
    keys = [key for key in vars(config) if "expert" in key and not key.startswith("_")]
    for is_so, reason in (
        (config.is_encoder_decoder, "it has an encoder and a decoder"),
        (
            "text_config" in config.sub_configs,
            "it reads more than text; save its language model alone",
        ),
        (keys, "its layers are mixtures of experts"),
        (hasattr(config, "num_hidden_groups"), "its layers share their parameters"),
    ):
        if is_so:
            return f" ({reason})"
    return ""


class _Families(Mapping[str, Family]):
    """All families by name; each is probed when it is first asked for."""

    def __getitem__(self, name: str) -> Family:
        return family_named(name)

    def __iter__(self) -> Iterator[str]:
        return iter(FAMILY_NAMES)

    def __len__(self) -> int:
        return len(FAMILY_NAMES)


FAMILIES = _Families()


def family_of(config: PretrainedConfig) -> Family:
    """The family that a configuration belongs to."""
    return family_named(config.model_type)


def check_sequence_length(tokens: TokensRecipe, teacher: PretrainedConfig) -> None:
    """Check the recipe's sequences and kind of language modeling against the teacher.

    Raises:
        RecipeError: sequences longer than the teacher's positions, or causal sequences for a masked
            teacher, or the reverse.
    """
    family = family_of(teacher)
    if family.language_modeling != tokens.language_modeling:
        raise RecipeError(
            f"tokens.language_modeling is {tokens.language_modeling}, but the teacher is a "
            f"{family.model_type} model, which does {family.language_modeling} language modeling. "
            f"Set it to {family.language_modeling}."
        )
    num_positions = family.num_positions(teacher)
    if tokens.sequence_length > num_positions:
        raise RecipeError(
            f"tokens.sequence_length is {tokens.sequence_length}, but the teacher has "
            f"{num_positions} positions. Set it to at most {num_positions}."
        )
