"""Which documents belong to the validation split.

Contract: the split of a document follows from its id alone, not from the seed, the order or the
other documents. A document of the validation split stays there at every larger fraction.
"""

import hashlib


def validation_point(document_id: str) -> float:
    """A hash of the id in [0, 1), uniform over ids and the same on every machine."""
    digest = hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53  # 53 bits: exact as a float


def is_validation(document_id: str, fraction: float) -> bool:
    """Whether a document belongs to a validation split of this fraction of all documents."""
    return validation_point(document_id) < fraction
