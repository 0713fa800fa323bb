"""Good calls of the ops of the sparse attention's indexer."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.support.arguments import Arguments
from tests.support.calls.call import Call
from tests.support.calls.gather import LARGER, make_sequences, padded_blocks
from tests.support.tensors import distinct_slots, embed


def tile_values(tokens: int, head_size: int, quant_block_size: int, dtype: torch.dtype) -> Tensor:
    """Tiles of all kinds: over many orders of magnitude, with scales at and next to a power of two, with NaNs, ..."""
    size = (tokens, head_size // quant_block_size)
    x = torch.randn(*size, quant_block_size)
    x /= x.abs().amax(-1, keepdim=True)
    exponent = torch.randint(-30 if dtype != torch.float16 else -14, 7, (*size, 1)).float()
    # The divisors of both formats, so that the scale is a power of two, or the neighbour of one.
    largest = (torch.exp2(exponent) * torch.tensor([1.0, 448.0, 224.0])[torch.randint(3, (*size, 1))]).to(dtype)
    bits = largest.view(torch.int32 if dtype == torch.float32 else torch.int16)
    bits += torch.randint(-1, 2, bits.shape, dtype=bits.dtype)
    x = (x * largest.float()).to(dtype)
    at = torch.randint(quant_block_size, (*size, 1))
    x.scatter_(-1, at, torch.where(torch.rand(largest.shape) < 0.5, largest, -largest))

    some, smallest = torch.rand(x.shape) < 0.3, torch.finfo(dtype).smallest_normal
    kind = torch.randint(12, (*size, 1))
    x = torch.where((kind == 0) & some, float("nan"), x)
    x = torch.where((kind == 1) & some, torch.where(x > 0, float("inf"), -float("inf")), x)
    x = torch.where((kind == 2) & some, torch.randn(x.shape) * torch.finfo(dtype).max, x)  # some of them infinite
    x = torch.where(kind == 3, torch.where(some, -0.0, 0.0), x)
    x = torch.where(kind == 4, torch.randn(x.shape) * smallest, x)
    x = torch.where(kind == 5, torch.randn(x.shape) * 3e-5, x)  # on both sides of the least scale
    x = torch.where(kind == 6, float("nan"), x)
    return x.to(dtype).flatten(1)


def indexer_write_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    format: str = "ue8m0",
    tokens: int = 37,
    head_size: int = 128,
    quant_block_size: int = 128,
    blocks: int = 3,
    block_size: int = 16,
    index_dtype: torch.dtype = torch.int64,
    surplus_rows: int = 0,
    k_options: dict[str, object] | None = None,
    cache_options: dict[str, object] | None = None,
) -> Arguments:
    """A good call; every token has a slot of its own."""
    k = embed((tokens + surplus_rows, head_size), dtype, device, **(k_options or {}))
    k.copy_(tile_values(tokens + surplus_rows, head_size, quant_block_size, dtype))
    shape = (blocks, block_size, head_size + 4 * head_size // quant_block_size)
    return {
        "k": k,
        "kv_cache": padded_blocks(shape, torch.uint8, device, **(cache_options or {})),
        "slot_mapping": distinct_slots(tokens, blocks * block_size, index_dtype).to(device),
        "quant_block_size": quant_block_size,
        "kv_cache_dtype": format,
    }


def indexer_gather_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.uint8,
    scale_dtype: torch.dtype = torch.uint8,
    head_size: int = 128,
    quant_block_size: int = 128,
    blocks: int = 9,
    block_size: int = 16,
    surplus_rows: int = 3,
    cache_options: dict[str, object] | None = None,
    dst_k_options: dict[str, object] | None = None,
    dst_scale_options: dict[str, object] | None = None,
    **options: object,
) -> Arguments:
    """A good call; `options` are those of make_sequences."""
    s = make_sequences(device, blocks=blocks, block_size=block_size, **options)
    rows, scale_bytes = s.num_rows + surplus_rows, 4 * head_size // quant_block_size
    cache_shape = (blocks, block_size, head_size + scale_bytes)
    scale_shape = (rows, scale_bytes // scale_dtype.itemsize)
    return {
        "kv_cache": padded_blocks(cache_shape, torch.uint8, device, **(cache_options or {})),
        "dst_k": embed((rows, head_size), dtype, device, **(dst_k_options or {})),
        "dst_scale": embed(scale_shape, scale_dtype, device, **(dst_scale_options or {})),
        "block_table": s.block_table,
        "cu_seq_lens": s.bounds,
    }


WRITE, GATHER = "indexer_k_quant_and_cache", "cp_gather_indexer_k_quant_cache"

TILES = {"quant_block_size": 8, "index_dtype": torch.int64}
MANY = {"larger": {"tokens": 3000, "blocks": 200}}

CALLS = {
    "indexer_write": Call(WRITE, indexer_write_arguments, {}, **MANY, uses_all=True),
    "indexer_write-float32": Call(WRITE, indexer_write_arguments, {"format": "auto", "quant_block_size": 32}, **MANY),
    "indexer_write-mxfp8": Call(WRITE, indexer_write_arguments, {"format": "mxfp8", "surplus_rows": 2}, **MANY),
    "indexer_write-no_tokens": Call(WRITE, indexer_write_arguments, {"tokens": 0}),
    "indexer_gather": Call(GATHER, indexer_gather_arguments, {}, **LARGER, uses_all=True),
    "indexer_gather-tiles": Call(GATHER, indexer_gather_arguments, TILES, **LARGER),
    "indexer_gather-no_sequences": Call(GATHER, indexer_gather_arguments, {"lengths": ()}),
}
