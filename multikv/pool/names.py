"""Names of blocks: hashes of all tokens up to the end of a block.

The name of a block is BLAKE2b, 32 bytes long, of the name of the block before it and of its own tokens. The first block
follows the root, which is the hash of the salt. So equal names mean equal salts, equal positions and equal tokens from
the start of the sequence on: nobody can find two texts with the same name, and tokens need not be compared on a hit.

    salt -> root -> name of tokens 0..15 -> name of tokens 0..31 -> ...
"""

from __future__ import annotations

import array
import hashlib

from .arguments import shortened

_NAME_BYTES = 32
_TOKEN_BYTES = 8


def root(cache_salt: str | bytes) -> bytes:
    """Returns the name that precedes the first block of sequences with this salt."""
    if not isinstance(cache_salt, (str, bytes, bytearray)):
        raise TypeError(f"new: cache_salt: expected str or bytes, got {shortened(cache_salt)}")
    salt = cache_salt.encode() if isinstance(cache_salt, str) else cache_salt
    return hashlib.blake2b(salt, digest_size=_NAME_BYTES, person=b"multikv salt").digest()


def chain(parent: bytes, tokens: array.array[int], block_size: int) -> list[bytes]:
    """Returns the names of the full blocks of `tokens`, which follow the block or root with the name `parent`."""
    content, block_bytes = tokens.tobytes(), block_size * _TOKEN_BYTES
    names, blake2b = [], hashlib.blake2b
    for begin in range(0, len(content) - block_bytes + 1, block_bytes):
        parent = blake2b(parent + content[begin : begin + block_bytes], digest_size=_NAME_BYTES).digest()
        names.append(parent)
    return names
