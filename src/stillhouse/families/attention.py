"""Attention that takes a batch's mask as it is, and none for none.

Given no mask, a causal body of transformers looks into the position ids for packed sequences. That
waits for the device; and where it is compiled, and cannot look, it builds a dense mask, which the
fastest attention kernels do not take. A batch says itself what it holds. transformers asks nothing
of an attention function that has no mask function beside it, hence a second name for its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import AttentionInterface, PretrainedConfig

NAME = "stillhouse"
AttentionInterface.register(NAME, AttentionInterface()["sdpa"])


@contextmanager
def masks_as_given(config: PretrainedConfig) -> Iterator[None]:
    """Within, the model of this configuration believes its caller; generation must not run here."""
    before = config._attn_implementation
    config._attn_implementation = NAME if before == "sdpa" else before
    try:
        yield
    finally:
        config._attn_implementation = before
