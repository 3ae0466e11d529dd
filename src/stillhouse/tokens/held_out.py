"""Which documents are held out.

Contract: the side of a document follows from its id alone. It does not depend on the seed, the
order or the other documents, and what is held out at one fraction is held out at every larger one.
"""

import hashlib


def validation_point(document_id: str) -> float:
    """Where an id falls in [0, 1): uniform, and always the same."""
    digest = hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53  # 53 bits: exact as a float


def is_validation(document_id: str, fraction: float) -> bool:
    """Whether a document belongs to the validation split of this share of all documents."""
    return validation_point(document_id) < fraction
