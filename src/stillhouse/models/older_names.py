"""The settings of rotary position embeddings under the names of transformers 4.

Programs that read published models (vLLM, llama.cpp's converter, transformers 4 itself, also in
TensorFlow) look for these names in `config.json`. Where one is missing they take a default without
a word: positions rotated by another base, so another model.
"""

from collections.abc import Mapping
from typing import Any

BASE, FRACTION = "rope_theta", "partial_rotary_factor"
# The base for all layers, or those of layers with full and with sliding-window attention.
BASES = {
    "gpt_neox": ("rotary_emb_base",),
    "gemma3_text": (BASE, "rope_local_base_freq"),
    "modernbert": ("global_rope_theta", "local_rope_theta"),
}
FRACTIONS = {"gpt_neox": "rotary_pct"}


def rotary_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers 5 writes as `rope_parameters`, as transformers 4 names it; empty for a
    model without rotary position embeddings."""
    stated = config.get("rope_parameters")
    if not stated:
        return {}
    kind, full = config["model_type"], stated.get("full_attention", stated)
    bases = [full[BASE]]
    if "sliding_attention" in stated:
        bases.append(stated["sliding_attention"][BASE])
    found = dict(zip(BASES.get(kind, (BASE,)), bases, strict=True))
    if FRACTION in full:
        found[FRACTIONS.get(kind, FRACTION)] = full[FRACTION]
    if full["rope_type"] != "default":
        numbers = {key: full[key] for key in full if key not in (BASE, FRACTION, "rope_type")}
        key = "type" if kind == "olmo2" else "rope_type"  # which OLMo 2 refuses
        found["rope_scaling"] = {key: full["rope_type"], **numbers}
    return found
