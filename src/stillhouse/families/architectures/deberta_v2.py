"""DeBERTa v2 and v3 (He et al. 2021), whose attention scores contents and relative positions apart.

A packed document has the relative positions that it has alone, so only the mask tells documents
apart. Published models keep the same head under other names than transformers' own class.
"""

from functools import partial

from transformers import PretrainedConfig

from stillhouse.families.base import Family


def relative_macs(config: PretrainedConfig) -> tuple[int, int]:
    """MACs of a layer for relative positions, of each token and of each forward pass.

    Queries are compared with keys of positions (`c2p`), and keys with queries of positions
    (`p2c`); a layer projects both from the model's table (He et al. 2021, section 3.1).
    """
    if not config.relative_attention:
        return 0, 0
    kinds, width = len({"c2p", "p2c"} & {*(config.pos_att_type or ())}), config.hidden_size
    span = getattr(config, "position_buckets", -1)
    if span < 1:
        span = config.max_relative_positions
    rows = 2 * (span if span > 0 else config.max_position_embeddings)
    return kinds * rows * width, 2 * rows * width**2


def _supports(config: PretrainedConfig) -> str | None:
    own = {key: getattr(config, key, None) for key in ("conv_kernel_size", "attention_head_size")}
    if (own["conv_kernel_size"] or 0) > 0:
        return (
            f"conv_kernel_size is {own['conv_kernel_size']}: a convolution over neighboring tokens "
            "would mix packed documents. Give a model without one, such as DeBERTa v3."
        )
    if own["attention_head_size"] is not None:
        return (
            f"attention_head_size is {own['attention_head_size']}, but heads divide the hidden "
            "size. Remove the key where it is hidden_size / num_attention_heads."
        )
    if config.relative_attention and not getattr(config, "share_att_key", False):
        return (
            "share_att_key is false: relative positions have projections of their own, which "
            "Stillhouse does not count or cut. Give a model that shares them, such as DeBERTa v3."
        )
    return None


FAMILY = partial(
    Family,
    head_transform=lambda model, hidden: model.cls.predictions.transform(hidden),
    published={
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    },
    relative_macs=relative_macs,
    supports=_supports,
    renamed_on_load={
        r"^lm_predictions\.lm_head\.(dense|LayerNorm)\.": r"cls.predictions.transform.\1.",
        r"^lm_predictions\.lm_head\.bias": "cls.predictions.bias",
    },
    ignored_on_load=(r"^mask_predictions\.", r"\.position_embeddings\.", r"\.position_ids$"),
    tiny={"position_buckets": 4},
)
