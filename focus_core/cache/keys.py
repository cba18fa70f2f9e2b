"""What a chunk is known by."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from hashlib import sha256

ChunkKey = bytes


def chunk_key(token_ids: Iterable[int], kv_dtype: str | None) -> ChunkKey:
    """Digest of a chunk's tokens, opening included, and of how its keys and values are kept.

    With the model's key, everything that these depend on.
    """
    return sha256(array("q", token_ids).tobytes() + (kv_dtype or "").encode()).digest()
