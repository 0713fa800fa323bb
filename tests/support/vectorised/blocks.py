"""Copies, zeroes and hashes of blocks of the caches of all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multikv.reference.formats import bits

__all__ = [
    "checksum_blocks",
    "copy_blocks_layers",
    "zero_blocks",
]

_STEP, _FACTORS = -0x61C8864680B583EB, (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # in two's complement


def _raise_first_bad(argument: str, bad: Tensor, values: Tensor) -> None:
    """`bad` and `values` are [n], or [n, 2]."""
    where = bad.nonzero()
    if len(where):
        at = tuple(where[0].tolist())
        raise IndexError(f"{argument}[{at if len(at) > 1 else at[0]}] is {values[at]}")


def copy_blocks_layers(
    caches: Sequence[Tensor], block_mapping: Tensor, num_tokens: int = -1, *, bad_indices: str = "raise"
) -> None:
    mapping = block_mapping.long().cpu()
    is_padding, is_bad = (mapping < 0).any(1), mapping >= len(caches[0])
    if bad_indices == "raise":
        _raise_first_bad("block_mapping", is_bad & ~is_padding[:, None], mapping)
    is_copied = ~is_padding & ~is_bad.any(1) & (mapping[:, 0] != mapping[:, 1])
    read, written = mapping[is_copied].unbind(1)
    for cache in caches:
        x = bits(cache)[:, : cache.shape[1] if num_tokens < 0 else num_tokens]
        x[written.to(x.device)] = x[read.to(x.device)]


def _listed(
    blocks: Tensor, num_blocks: int, tokens: Tensor, argument: str, most: int, bad_indices: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The entries that are neither padding nor bad: their numbers, blocks and numbers of tokens."""
    blocks, tokens = blocks.long().cpu(), tokens.long().cpu()
    bad_blocks, bad_tokens = blocks >= num_blocks, (blocks >= 0) & ((tokens < 0) | (tokens > most))
    if bad_indices == "raise":
        first = (bad_blocks | bad_tokens).nonzero().flatten()[:1]
        _raise_first_bad("block_ids", bad_blocks[: len(blocks) if not len(first) else int(first) + 1], blocks)
        _raise_first_bad(argument, bad_tokens, tokens)
    entries = (~bad_blocks & ~bad_tokens & (blocks >= 0)).nonzero().flatten()
    return entries, blocks[entries], tokens[entries]


def zero_blocks(
    caches: Sequence[Tensor], block_ids: Tensor, first_token: Tensor | None = None, *, bad_indices: str = "raise"
) -> None:
    first = torch.zeros(len(block_ids)) if first_token is None else first_token
    most = 2**63 - 1
    _, blocks, tokens = _listed(block_ids, len(caches[0]), first, "first_token", most, bad_indices)
    for cache in caches:
        entry, token = (torch.arange(cache.shape[1]) >= tokens[:, None]).nonzero().unbind(1)
        bits(cache)[blocks[entry].to(cache.device), token.to(cache.device)] = 0


def _mix(x: Tensor) -> Tensor:
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shifts to the right and fills with zeros."""
    return x >> bits & (1 << 64 - bits) - 1


def checksum_blocks(
    caches: Sequence[Tensor],
    block_ids: Tensor,
    out: Tensor,
    num_tokens: Tensor | None = None,
    *,
    bad_indices: str = "raise",
) -> None:
    counts = torch.zeros(len(block_ids)) if num_tokens is None else num_tokens
    most = caches[0].shape[1]
    entries, blocks, counts = _listed(block_ids, len(caches[0]), counts, "num_tokens", most, bad_indices)
    for p, cache in enumerate(caches):
        content = bits(cache)[blocks.to(cache.device)].cpu().contiguous()
        message = content.flatten(1).view(torch.uint8)
        size = message.shape[1]
        lengths = torch.full_like(counts, size) if num_tokens is None else counts * (size // max(most, 1))
        message = torch.nn.functional.pad(message, (0, -size % 8))
        message[torch.arange(message.shape[1]) >= lengths[:, None]] = 0
        words = message.view(torch.int64)
        numbers = torch.arange(1, words.shape[1] + 1)
        mixed = _mix(words ^ numbers * _STEP)
        mixed[8 * (numbers - 1) >= lengths[:, None]] = 0
        out[entries.to(out.device), p] = _mix(mixed.sum(1) ^ lengths).to(out.device)
