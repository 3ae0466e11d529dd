"""Attention that takes a batch's mask as it is, and none for none.

Given no mask, a causal body of transformers looks into the position ids for packed sequences. That
waits for the device; and where it is compiled, and cannot look, it builds a dense mask, which the
fastest attention kernels do not take. A batch says itself what it holds. transformers asks nothing
of an attention function that has no mask function beside it, hence a second name for its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, PretrainedConfig

NAME = "stillhouse"
SHORT = 128  # positions; forward and backward take 0.7 of the fused kernel's time there, 1.1 at 256

_sdpa = AttentionInterface()["sdpa"]


def _attention(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Attention in separate products where the whole square is wanted, short, and on a processor;
    else by the fused kernels."""
    causal = getattr(module, "is_causal", False)
    if query.device.type == "cpu" and query.shape[2] <= SHORT and not causal:
        with sdpa_kernel(SDPBackend.MATH):
            return _sdpa(module, query, *args, **kwargs)
    return _sdpa(module, query, *args, **kwargs)


AttentionInterface.register(NAME, _attention)


@contextmanager
def masks_as_given(config: PretrainedConfig) -> Iterator[None]:
    """Within, the model of this configuration believes its caller; generation must not run here."""
    before = config._attn_implementation
    config._attn_implementation = NAME if before == "sdpa" else before
    try:
        yield
    finally:
        config._attn_implementation = before
