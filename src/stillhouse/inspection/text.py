"""The text that units are observed on: packed sequences of token ids, kept with what was found, so
that contexts can be shown without reading the text again.

Axes: S sequences, T positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from stillhouse.errors import DataError
from stillhouse.inference.loaded import LoadedModel
from stillhouse.student.calibration import read_calibration
from stillhouse.student.settings import ImportanceRecipe
from stillhouse.tokens.batches import IGNORED, Batch
from stillhouse.tokens.packing import packed_batch
from stillhouse.tokens.settings import TokensRecipe
from stillhouse.tokens.tokenizer import special_tokens
from stillhouse.training.progress import Reporter

SEQUENCE_LENGTH = 256  # tokens; an ablation runs the model on whole contexts
TOKENS_PER_BATCH = 4_096
FEWEST_TOKENS = 64


@dataclass(frozen=True)
class PackedText:
    """Sequences as a model reads them.

    Attributes:
        segments: Number the documents of a sequence from 1; 0 is padding.
        counted: Positions of the text itself: not padding, and not the tokens around a document,
            whose activations are unlike any other and hide them.
        causal: Whether a position sees only those before it.
    """

    input_ids: Int[Tensor, "S T"]
    segments: Int[Tensor, "S T"]
    counted: Bool[Tensor, "S T"]
    causal: bool

    @property
    def num_counted(self) -> int:
        return int(self.counted.sum())

    def starts(self) -> range:
        """The first sequence of each batch."""
        return range(0, len(self.input_ids), max(1, TOKENS_PER_BATCH // self.input_ids.shape[1]))

    def batch(self, start: int) -> tuple[Batch, Int[Tensor, " R"]]:
        """A batch of sequences, and its counted rows among the B * T positions."""
        part = slice(start, start + self.starts().step)
        rows = self.counted[part].flatten().nonzero().squeeze(1)
        return batch_of(self.input_ids[part], self.segments[part], causal=self.causal), rows

    def batches(self) -> Iterator[tuple[Batch, Int[Tensor, " R"]]]:
        """All batches, in order."""
        return map(self.batch, self.starts())

    def halves(self) -> tuple["PackedText", "PackedText"]:
        """The first and the second half of the sequences."""
        middle = (len(self.input_ids) + 1) // 2
        return tuple(  # pyright: ignore[reportReturnType]
            PackedText(self.input_ids[own], self.segments[own], self.counted[own], self.causal)
            for own in (slice(middle), slice(middle, None))
        )

    def save(self, folder: Path) -> None:
        """Write `tokens.safetensors`."""
        tensors = {"input_ids": self.input_ids, "segments": self.segments, "counted": self.counted}
        save_file(tensors | {"causal": torch.tensor(self.causal)}, folder / "tokens.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "PackedText":
        """Read it again."""
        tensors = load_file(folder / "tokens.safetensors")
        return cls(**tensors | {"causal": bool(tensors["causal"])})  # pyright: ignore[reportArgumentType]


def batch_of(input_ids: Int[Tensor, "B T"], segments: Int[Tensor, "B T"], *, causal: bool) -> Batch:
    """A batch without labels."""
    ids, own = input_ids.long().numpy(), segments.long().numpy()
    return packed_batch(ids, np.full_like(ids, IGNORED), own, causal=causal)


def read_text(
    loaded: LoadedModel, source: str, num_tokens: int, reporter: Reporter, *, offline: bool
) -> PackedText:
    """The first tokens of a source; that it has fewer is said. Sequences for a masked model are
    masked as in its training.

    Raises:
        DataError: text that cannot be read, or that is too short.
    """
    family, tokenizer = loaded.family, loaded.tokenizer
    kind = family.language_modeling
    length = min(SEQUENCE_LENGTH, family.num_positions(loaded.model.config))
    calibration = read_calibration(
        ImportanceRecipe(text=source, tokens=num_tokens),
        TokensRecipe(language_modeling=kind, sequence_length=length),
        tokenizer,
        key="--text",
        offline=offline,
    )
    batches = [*calibration.batches()]
    ids, segments = (
        torch.cat([getattr(batch, name) for batch in batches]).int()
        for name in ("input_ids", "segment_ids")
    )
    special = special_tokens(tokenizer, kind)
    around = (special.pad, special.cls, special.sep, *special.document_prefix)
    known = torch.tensor([id for id in around if id is not None], dtype=torch.int32)
    text = PackedText(ids, segments, (segments > 0) & ~torch.isin(ids, known), kind == "causal")
    if text.num_counted < FEWEST_TOKENS:
        raise DataError(
            f"--text {source} has {text.num_counted} tokens of the {num_tokens:,} asked for; at "
            f"least {FEWEST_TOKENS} are needed. Give a longer text."
        )
    if len(calibration.sequences) < num_tokens // length:
        reporter.say(f"{source}: {text.num_counted:,} tokens, of {num_tokens:,} asked for")
    return text
