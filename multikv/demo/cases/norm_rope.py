"""Workloads that norm and rotate queries and keys, alone, and in one pass with the write into a paged cache."""

import torch
from torch import Tensor

from . import values
from .case import Case
from .mla_rope import cos_sin
from .workload import Workload

__all__ = ["qk_norm_rope_cache", "rms_norm", "rotary_embedding"]

_NUM_POSITIONS = 4096


def qk_norm_rope_cache(
    device: torch.device,
    num_tokens: int,
    kv_cache_dtype: str = "bfloat16",
    norm: str | None = None,
    num_heads: int = 32,
    num_kv_heads: int = 8,
    head_size: int = 128,
    is_neox: bool = True,
    packed: bool = False,
    rotary_size: int | None = None,
    block_size: int = 16,
    table_dtype: torch.dtype = torch.bfloat16,
) -> Workload:
    """Processes tokens at consecutive positions. `norm` is the argument norm_order, or None for no norm."""
    dtype = values.CACHE_DTYPES[kv_cache_dtype]
    num_blocks, slots = values.slots(num_tokens, block_size, device)
    shapes: list[tuple[int, ...]] = [(num_blocks, block_size, num_kv_heads, head_size)] * 2
    if packed:
        x = 16 // dtype.itemsize
        key_shape = (num_blocks, num_kv_heads, head_size // x, block_size, x)
        shapes = [key_shape, (num_blocks, num_kv_heads, head_size, block_size)]
    caches = [values.bits(shape, dtype, device) for shape in shapes]
    qkv = values.normal((num_tokens, (num_heads + 2 * num_kv_heads) * head_size), device)
    q_out = torch.empty(num_tokens, num_heads, head_size, dtype=torch.bfloat16, device=device)
    weights: list[Tensor | None] = [None, None]
    if norm is not None:
        rows = (num_heads, num_kv_heads) if norm == "all_heads" else (1, 1)
        weights = [values.normal((heads * head_size,), device) for heads in rows]
    k_scale, v_scale = (values.scales(device, scale) for scale in (0.037, 0.051))
    table = cos_sin(rotary_size or head_size, device, table_dtype)
    arguments = (qkv, q_out, None, *caches, slots, _positions(num_tokens, device), table)
    sizes = (num_heads, num_kv_heads, head_size, is_neox, kv_cache_dtype, k_scale, v_scale, None)
    norms = (*weights, 1e-6 if norm else -1.0, 0.0, norm or "head")
    num_bytes = values.num_bytes(qkv, q_out) + 2 * num_tokens * num_kv_heads * head_size * dtype.itemsize
    return Workload("qk_norm_rope_cache", (*arguments, *sizes, *norms), written=(1, 3, 4), num_bytes=num_bytes)


def rms_norm(device: torch.device, num_rows: int, size: int = 4096) -> Workload:
    """Norms rows of bfloat16 elements."""
    input = values.normal((num_rows, size), device)
    out = torch.empty_like(input)
    arguments = (out, input, values.normal((size,), device), 1e-6)
    return Workload("rms_norm", arguments, written=(0,), num_bytes=values.num_bytes(input, out))


def rotary_embedding(
    device: torch.device,
    num_tokens: int,
    num_heads: int = 32,
    num_kv_heads: int = 8,
    head_size: int = 128,
    is_neox: bool = True,
    table_dtype: torch.dtype = torch.bfloat16,
) -> Workload:
    """Rotates queries and keys in place. Every call rotates them further."""
    query, key = (values.normal((num_tokens, heads, head_size), device) for heads in (num_heads, num_kv_heads))
    table = cos_sin(head_size, device, table_dtype)
    arguments = (_positions(num_tokens, device), query, key, head_size, table, is_neox)
    return Workload("rotary_embedding", arguments, written=(1, 2), num_bytes=2 * values.num_bytes(query, key))


def _positions(num_tokens: int, device: torch.device) -> Tensor:
    first = torch.randint(1, _NUM_POSITIONS, (1,), device=device)
    return (first + torch.arange(num_tokens, device=device)) % _NUM_POSITIONS


CASES = [
    Case.of_tokens(qk_norm_rope_cache, "32 + 8 heads, bfloat16"),
    Case.of_tokens(
        qk_norm_rope_cache, "32 + 4 heads, norms, fp8_e4m3", kv_cache_dtype="fp8_e4m3", num_kv_heads=4, norm="head"
    ),
    Case("4,096 rows of 4,096 elements", rms_norm, {"num_rows": 37, "size": 100}, {"num_rows": 4096}),
    Case.of_tokens(rotary_embedding, "32 + 8 heads"),
]
