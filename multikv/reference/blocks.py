"""Copies, zeroes and hashes blocks of the caches of all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .formats import bad_index, bits

__all__ = ["checksum_blocks", "copy_blocks_layers", "zero_blocks"]

_MASK = 2**64 - 1


def _listed_blocks(
    argument: str, blocks: list[int], num_blocks: int, tokens: list[int], token_argument: str, most: int, skip: bool
) -> list[tuple[int, int, int]]:
    """Returns (i, block, tokens[i]) for every entry i that is not padding.

    A bad entry is left out if `skip` is true, and raises IndexError if it is false.
    """
    found = []
    for i, (block, count) in enumerate(zip(blocks, tokens, strict=True)):
        if block < 0:
            continue
        for name, value, is_good in (
            (argument, block, block < num_blocks),
            (token_argument, count, 0 <= count <= most),
        ):
            if not is_good and not skip:
                raise bad_index(name, i, value)
        if block < num_blocks and 0 <= count <= most:
            found.append((i, block, count))
    return found


def copy_blocks_layers(
    caches: Sequence[Tensor], block_mapping: Tensor, num_tokens: int = -1, *, bad_indices: str = "raise"
) -> None:
    """Copies caches[p][dst, :num_tokens] = caches[p][src, :num_tokens], bit for bit, for every (src, dst) and p.

    caches [N, B, ...] each; block_mapping [n, 2]. A pair with a negative part is padding. No block is written by one
    pair and read or written by another.
    """
    pairs = []
    for i, (src, dst) in enumerate(block_mapping.tolist()):
        if src < 0 or dst < 0:
            continue
        bad = [side for side, block in enumerate((src, dst)) if block >= len(caches[0])]
        if bad and bad_indices == "raise":
            raise bad_index("block_mapping", (i, bad[0]), (src, dst)[bad[0]])
        if not bad:
            pairs.append((src, dst))
    for cache in caches:
        tokens = slice(cache.shape[1] if num_tokens < 0 else num_tokens)
        for src, dst in pairs:
            bits(cache)[dst, tokens] = bits(cache)[src, tokens]


def zero_blocks(
    caches: Sequence[Tensor], block_ids: Tensor, first_token: Tensor | None = None, *, bad_indices: str = "raise"
) -> None:
    """Sets the bytes of caches[p][block_ids[i], first_token[i]:] to 0 for every i and p.

    caches [N, B, ...] each; block_ids [n]; first_token [n], all 0 if it is None. A negative block is padding.
    """
    blocks = block_ids.tolist()
    first = [0] * len(blocks) if first_token is None else first_token.tolist()
    skip = bad_indices == "skip"
    for _, block, token in _listed_blocks("block_ids", blocks, len(caches[0]), first, "first_token", 2**63, skip):
        for cache in caches:
            bits(cache)[block, token:] = 0


def mix(x: int) -> int:
    """Returns the last step of the random number generator splitmix64, a permutation of the 64-bit numbers."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def checksum(message: bytes) -> int:
    """Returns the hash of checksum_blocks of some bytes, from 0 to 2^64 - 1."""
    words = [int.from_bytes(message[at : at + 8], "little") for at in range(0, len(message), 8)]
    total = sum(mix(word ^ i * 0x9E3779B97F4A7C15 & _MASK) for i, word in enumerate(words, 1))
    return mix(total & _MASK ^ len(message))


def checksum_blocks(
    caches: Sequence[Tensor],
    block_ids: Tensor,
    out: Tensor,
    num_tokens: Tensor | None = None,
    *,
    bad_indices: str = "raise",
) -> None:
    """Sets out[i, p] to the hash of the first num_tokens[i] tokens of block block_ids[i] of caches[p].

    caches [N, B, ...] each; block_ids [n]; out [n, P], int64, in two's complement; num_tokens [n], all B if it is None.
    The tokens' elements are hashed in the order of the dimensions, whatever their strides. A negative block is padding:
    its row of out keeps its content.
    """
    blocks, most = block_ids.tolist(), caches[0].shape[1]
    counts = [0] * len(blocks) if num_tokens is None else num_tokens.tolist()
    skip = bad_indices == "skip"
    for i, block, count in _listed_blocks("block_ids", blocks, len(caches[0]), counts, "num_tokens", most, skip):
        for p, cache in enumerate(caches):
            tokens = bits(cache)[block, : cache.shape[1] if num_tokens is None else count].cpu().contiguous()
            value = checksum(tokens.view(-1).view(torch.uint8).numpy().tobytes())
            out[i, p] = value - 2**64 if value >= 2**63 else value
