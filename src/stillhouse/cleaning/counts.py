"""What the steps of cleaning did to a shard, and to all of them: sums of the same counts.

Contract: counts of shards add up to those of the text in any order; samples are those whose
documents have the lowest hashes of their ids, whatever the shards.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SAMPLES = 3  # of what is left out, for each reason
SAMPLE_CHARACTERS = 400
CHANGE_CONTEXT = 80  # characters before a change that are shown with it


@dataclass
class StepCounts:
    """One step: documents and bytes of text before and after it, what it left out by reason, and
    its CPU time in seconds."""

    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    samples: dict[str, list[list[str]]] = field(default_factory=dict)
    changed: int = 0
    changes: list[list[str]] = field(default_factory=list)

    def change(self, id: str, before: Callable[[], str], after: str) -> None:
        """Count a document whose text was changed; of some, keep the passage at the first change,
        before and after it."""
        self.changed += 1
        own = _hash(id)
        if len(self.changes) < SAMPLES or own < self.changes[-1][0]:
            sample = [own, id, *_around_change(before(), after)]
            self.changes = sorted([*self.changes, sample])[:SAMPLES]

    def reject(self, reason: str, id: str, url: str, text: str) -> None:
        self.reasons[reason] += 1
        sample = [_hash(id), id, url, text[:SAMPLE_CHARACTERS]]
        self.samples[reason] = sorted([*self.samples.get(reason, []), sample])[:SAMPLES]

    def add(self, other: Mapping[str, Any]) -> None:
        """Add the facts of another shard."""
        for key in ("documents_in", "bytes_in", "documents_out", "bytes_out", "seconds", "changed"):
            setattr(self, key, getattr(self, key) + other[key])
        self.changes = sorted([*self.changes, *other["changes"]])[:SAMPLES]
        self.reasons.update(other["reasons"])
        for reason, samples in other["samples"].items():
            own = self.samples.get(reason, [])
            self.samples[reason] = sorted([*own, *samples])[:SAMPLES]

    def facts(self) -> dict[str, Any]:
        return {
            "documents_in": self.documents_in,
            "bytes_in": self.bytes_in,
            "documents_out": self.documents_out,
            "bytes_out": self.bytes_out,
            "reasons": dict(sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))),
            "seconds": round(self.seconds, 3),
            "samples": dict(sorted(self.samples.items())),
            "changed": self.changed,
            "changes": self.changes,
        }


def left_out(steps: Mapping[str, Mapping[str, Any]]) -> str:
    """The end of a sentence: how many documents each step left out, with the reasons, such as
    "; left out by length 6 (under 128 tokens)"."""
    parts = []
    for name, own in steps.items():
        number = own["documents_in"] - own["documents_out"]
        if number:
            reasons = [*own["reasons"]]
            others = f" and {len(reasons) - 1} other reasons" if len(reasons) > 2 else ""
            shown = " or ".join(reasons if len(reasons) < 3 else reasons[:1])
            parts.append(f"{name} {number:,} ({shown}{others})")
    return f"; left out by {', '.join(parts)}" if parts else ""


def _around_change(before: str, after: str) -> tuple[str, str]:
    """The passage of each text at the first character in which they differ."""
    pairs = zip(before, after, strict=False)
    shorter = min(len(before), len(after))
    first = next((place for place, (a, b) in enumerate(pairs) if a != b), shorter)
    part = slice(max(0, first - CHANGE_CONTEXT), first + SAMPLE_CHARACTERS - CHANGE_CONTEXT)
    return before[part], after[part]


def _hash(id: str) -> str:
    return hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass
class TextShape:
    """Languages and lengths of documents: how many have between 2^k and 2^(k+1) - 1 words."""

    documents: int = 0
    bytes: int = 0
    words: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    lengths: Counter[str] = field(default_factory=Counter)

    def add_text(self, text: str, language: str) -> None:
        words = len(text.split())
        self.documents += 1
        self.bytes += len(text.encode())
        self.words += words
        self.languages[language or "unknown"] += 1
        self.lengths[str(words.bit_length() - 1 if words else 0)] += 1

    def add(self, other: Mapping[str, Any]) -> None:
        """Add the facts of another shard."""
        for key in ("documents", "bytes", "words"):
            setattr(self, key, getattr(self, key) + other[key])
        self.languages.update(other["languages"])
        self.lengths.update(other["lengths"])

    def facts(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "words": self.words,
            "languages": dict(sorted(self.languages.items(), key=lambda item: (-item[1], item[0]))),
            "lengths": dict(sorted(self.lengths.items(), key=lambda item: int(item[0]))),
        }


def summed(steps: Iterable[Mapping[str, Any]]) -> dict[str, StepCounts]:
    """The counts of each step over the facts of shards."""
    total: dict[str, StepCounts] = {}
    for facts in steps:
        for name, own in facts.items():
            total.setdefault(name, StepCounts()).add(own)
    return total
