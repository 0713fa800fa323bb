"""Good calls of the ops of multi-head latent attention."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.arguments import Arguments
from tests.support.calls.call import Call
from tests.support.calls.gather import padded_blocks
from tests.support.calls.indexer import tile_values
from tests.support.parameters import FORMATS
from tests.support.tensors import cache_dtype, embed, random_bytes, randomise

DS_MLA, DS_MLA_BYTES = "fp8_ds_mla", 656
MLA_FORMATS = (*FORMATS, DS_MLA)

Options = dict[str, object]


def _pair(rows: tuple[int, ...], sizes: tuple[int, int], *at: object, **options: object) -> tuple[Tensor, Tensor]:
    first, second = (embed((*rows, size), *at, **options) for size in sizes)
    return first, second


# name -> (rows, (latent size, rotary size), dtype, device) -> kv_c, k_pe
INPUT_LAYOUTS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "dense": _pair,
    # What one projection gives: of queries something, then the latent, then the rotary key.
    "projection": lambda rows, sizes, *at: embed((*rows, 96 + sum(sizes)), *at).split([96, *sizes], -1)[1:],
    "padded": lambda rows, *at: _pair(rows, *at, padding=(*(0 for _ in rows), 3)),
    "unaligned": lambda rows, *at: _pair(rows, *at, offset=1),
}
GROUPED_INPUT_LAYOUTS = INPUT_LAYOUTS | {"tokens_first": lambda rows, *at: _pair(rows, *at, order=(1, 0, 2))}

# Options of embed for [blocks, block_size, entry], and of padded_blocks.
CACHE_LAYOUTS: dict[str, Options] = {
    "dense": {},
    "padded_slots": {"padding": (0, 0, 5)},
    "aligned_slots": {"padding": (0, 0, 64)},
    "padded_both": {"padding": (0, 3, 1)},
    "padded_blocks": {"block_padding": 7},
    "unaligned": {"offset": 1},
    "slots_outermost": {"order": (1, 0, 2)},
}


def make_slots(tokens: int, num_slots: int, dtype: torch.dtype, share_of_padding: float) -> Tensor:
    """Each token a slot of its own, half of them in a run, as far as there are any; or a negative one."""
    used = torch.randperm(num_slots)[:tokens]
    run = len(used) // 2
    start = int(torch.randint(num_slots - run + 1, ()))
    others = used[(used < start) | (used >= start + run)]
    used = torch.cat([torch.arange(start, start + run), others])[: len(used)].to(dtype)
    slots = torch.full((tokens,), -1, dtype=dtype)
    slots[torch.randperm(tokens)[: len(used)].sort().values] = used
    slots[torch.rand(tokens) < share_of_padding] = -7
    return slots


def slots_used_twice(tokens: int, num_slots: int) -> Tensor:
    """Many tokens of the first half for each slot, and one of the second, soon: if threads race, it is overwritten."""
    slots = torch.full((tokens,), -1)
    slots[: tokens // 2] = torch.randint(num_slots, (tokens // 2,))
    slots[tokens // 2 :][:num_slots] = torch.arange(num_slots)
    return slots


def mla_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    format: str = "auto",
    float8: bool = False,
    stored: torch.dtype | None = None,
    tokens: int = 7,
    latent_size: int = 512,
    rope_size: int = 64,
    blocks: int | None = None,
    block_size: int = 16,
    inputs: str = "dense",
    cache: str = "dense",
    index_dtype: torch.dtype = torch.int64,
    share_of_padding: float = 0.0,
    surplus_rows: int = 0,
    any_bits: bool = False,
    skip_scale: bool = False,
) -> Arguments:
    """A good call. `stored` is the cache's dtype, if it shall not be the one that `format` and `float8` say."""
    blocks = -(-tokens // block_size) + 2 if blocks is None else blocks
    kv_c, k_pe = INPUT_LAYOUTS[inputs]((tokens + surplus_rows,), (latent_size, rope_size), dtype, device)
    if not any_bits:
        kv_c.copy_(tile_values(*kv_c.shape, 128, dtype)) if format == DS_MLA else randomise(kv_c)
        randomise(k_pe)
    if format == DS_MLA:
        stored = stored or (torch.float8_e4m3fn if float8 else torch.uint8)
        entry = DS_MLA_BYTES // stored.itemsize
    else:
        stored = stored or cache_dtype(format, dtype, float8=float8)
        entry = latent_size + rope_size
    embedded = padded_blocks if "block_padding" in CACHE_LAYOUTS[cache] else embed
    return {
        "kv_c": kv_c,
        "k_pe": k_pe,
        "kv_cache": embedded((blocks, block_size, entry), stored, device, **CACHE_LAYOUTS[cache]),
        "slot_mapping": make_slots(tokens, blocks * block_size, index_dtype, share_of_padding).to(device),
        "kv_cache_dtype": format,
        "scale": torch.tensor([0.37], device=device),
        "skip_scale": skip_scale,
    }


# -- rope --------------------------------------------------------------------------------------------------------------


def rope_values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Numbers of which many pairs are equal up to the sign: where sine and cosine are too, their products cancel."""
    x = torch.randn(shape) * torch.exp2(torch.randint(-3, 5, shape).float())
    return torch.where(torch.rand(shape) < 0.5, torch.randn(shape).sign() * 1234.5678, x).to(dtype)


def make_cos_sin_cache(positions: int, rope_size: int, dtype: torch.dtype) -> Tensor:
    """Of random angles; half of them odd multiples of pi/4 or next to one."""
    angles = torch.rand(positions, rope_size // 2, dtype=torch.float64) * 2 * math.pi
    diagonal = (torch.randint(4, angles.shape) + 0.5) * (math.pi / 2) + torch.randn(angles.shape) * 1e-7
    angles = torch.where(torch.rand(angles.shape) < 0.5, diagonal, angles)
    return torch.cat([angles.cos(), angles.sin()], 1).to(dtype)


# name -> (tokens, heads, rope_size, dtype, device) -> q_pe
QUERY_LAYOUTS: dict[str, Callable[..., Tensor]] = {
    "dense": lambda t, h, r, *at: embed((t, h, r), *at),
    "after_nope": lambda t, h, r, *at: embed((t, h, 128 + r), *at)[..., 128:],
    "padded": lambda t, h, r, *at: embed((t, h, r), *at, padding=(0, 1, 3)),
    "unaligned": lambda t, h, r, *at: embed((t, h, r), *at, offset=1),
    "heads_first": lambda t, h, r, *at: embed((t, h, r), *at, order=(1, 0, 2)),
}


def rope_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    table_dtype: torch.dtype | None = None,
    is_neox: bool = False,
    tokens: int = 7,
    heads: int = 3,
    latent_size: int = 512,
    rope_size: int = 64,
    queries: str = "dense",
    k_pe_dims: int = 2,
    num_positions: int = 20,
    position_dtype: torch.dtype = torch.int64,
    surplus_rows: int = 0,
    table_options: Options | None = None,
    extreme: bool = False,
    **options: object,
) -> Arguments:
    """A good call; `options` are those of mla_arguments. Only `extreme` ones yield NaNs."""
    sizes = {"latent_size": latent_size, "rope_size": rope_size}
    call = mla_arguments(device, dtype=dtype, tokens=tokens, surplus_rows=surplus_rows, **sizes, **options)
    k_pe = call["k_pe"] if k_pe_dims == 2 else call["k_pe"][:, None]
    q_pe = QUERY_LAYOUTS[queries](tokens + surplus_rows, heads, rope_size, dtype, device)
    table_dtype = table_dtype or dtype
    table = embed((num_positions, rope_size), table_dtype, device, **(table_options or {}))
    if extreme:
        for x in (q_pe, k_pe, table):
            randomise(x)
    else:
        q_pe.copy_(rope_values(q_pe.shape, dtype))
        k_pe.copy_(rope_values(k_pe.shape, dtype))
        table.copy_(make_cos_sin_cache(num_positions, rope_size, table_dtype))
    positions = torch.randint(num_positions, (tokens + surplus_rows,), dtype=position_dtype)
    positions[tokens:] = 1_000_000  # nobody may look at them
    return {
        "positions": positions.to(device),
        "q_pe": q_pe,
        "k_pe": k_pe,
        "kv_c": call["kv_c"],
        "cos_sin_cache": table,
        "is_neox": is_neox,
        "slot_mapping": call["slot_mapping"],
        "kv_cache": call["kv_cache"],
        "kv_cache_dtype": call["kv_cache_dtype"],
        "kv_cache_scale": call["scale"],
    }


# -- concat_mla_q, concat_and_cache_mla_grouped ------------------------------------------------------------------------


def concat_q_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    tokens: int = 7,
    heads: int = 16,
    surplus_heads: int = 0,
    nope_size: int = 512,
    rope_size: int = 64,
    nope_options: Options | None = None,
    rope_options: Options | None = None,
    out_options: Options | None = None,
) -> Arguments:
    """A good call, of any bits."""
    out_shape = (tokens, heads + surplus_heads, nope_size + rope_size)
    return {
        "ql_nope": embed((tokens, heads, nope_size), dtype, device, **(nope_options or {})),
        "q_pe": embed((tokens, heads, rope_size), dtype, device, **(rope_options or {})),
        "q_out": embed(out_shape, dtype, device, **(out_options or {})),
    }


def grouped_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    format: str = "auto",
    layers: int = 3,
    tokens: int = 7,
    latent_size: int = 512,
    rope_size: int = 64,
    blocks: int = 3,
    block_size: int = 16,
    slot_padding: int = 0,
    block_padding: int = 0,
    layer_padding: int = 8,
    inputs: str = "dense",
    one_input: bool = False,
    one_slot_mapping: bool = False,
    index_dtype: torch.dtype = torch.int64,
    share_of_padding: float = 0.0,
    surplus_rows: int = 0,
    bounded: bool = True,
) -> Arguments:
    """A good call. The caches lie in the memory that kv_cache_ptrs lies in, `layer_padding` elements between them."""
    rows = (1 if one_input else layers, tokens + surplus_rows)
    kv_c, k_pe = GROUPED_INPUT_LAYOUTS[inputs](rows, (latent_size, rope_size), dtype, device)
    randomise(kv_c), randomise(k_pe)
    slots = torch.empty(1 if one_slot_mapping else layers, tokens, dtype=index_dtype)
    for row in slots:
        row.copy_(make_slots(tokens, blocks * block_size, index_dtype, share_of_padding))

    entry_stride = latent_size + rope_size + slot_padding
    block_stride = block_size * entry_stride + block_padding
    step = (blocks * block_stride + layer_padding) * cache_dtype(format, dtype).itemsize
    guard = 2048
    memory = random_bytes(guard + 8 * layers + guard + -(-layers * step // 8) * 8 + guard, device)
    kv_cache_ptrs = memory.view(torch.int64).as_strided((layers,), (1,), guard // 8)
    first = memory.data_ptr() + guard + 8 * layers + guard
    kv_cache_ptrs.copy_(first + step * torch.arange(layers))
    return {
        "kv_c": kv_c.expand(layers, -1, -1),
        "k_pe": k_pe.expand(layers, -1, -1),
        "kv_cache_ptrs": kv_cache_ptrs,
        "slot_mapping": slots.to(device).expand(layers, -1),
        "block_size": block_size,
        "block_stride": block_stride,
        "entry_stride": entry_stride,
        "kv_scales": None if format == "auto" else torch.rand(layers).to(device) + 0.25,
        "kv_cache_dtype": format,
        "num_blocks": blocks if bounded else -1,
    }


MLA, ROPE, CONCAT_Q = "concat_and_cache_mla", "concat_and_cache_mla_rope_fused", "concat_mla_q"
GROUPED = "concat_and_cache_mla_grouped"
LARGER, LARGER_GROUPED = {"tokens": 1000}, {"tokens": 1000, "blocks": 70}
PADDED = {"share_of_padding": 0.3}
SURPLUS_HEADS = {"surplus_heads": 2, "nope_options": {"order": (1, 0, 2)}}
ROPE_OUTPUTS = ("q_pe", "k_pe", "kv_cache")  # those that may hold NaNs

CALLS = {
    "mla": Call(MLA, mla_arguments, {"tokens": 30}, PADDED, larger=LARGER),
    "mla-fp8": Call(
        MLA, mla_arguments, {"format": "fp8", "inputs": "projection"}, PADDED, larger=LARGER, uses_all=True
    ),
    "mla-ds_mla": Call(MLA, mla_arguments, {"format": DS_MLA, "cache": "padded_blocks"}, PADDED, larger=LARGER),
    "mla-no_tokens": Call(MLA, mla_arguments, {"tokens": 0}),
    "rope": Call(ROPE, rope_arguments, {"queries": "after_nope", "inputs": "padded"}, PADDED, larger=LARGER),
    "rope-neox": Call(
        ROPE, rope_arguments, {"is_neox": True, "format": "fp8", "k_pe_dims": 3}, PADDED, larger=LARGER, uses_all=True
    ),
    "rope-ds_mla": Call(ROPE, rope_arguments, {"table_dtype": torch.float32, "format": DS_MLA}, PADDED, larger=LARGER),
    "rope-nans": Call(ROPE, rope_arguments, {"extreme": True}, PADDED, ROPE_OUTPUTS, LARGER),
    "rope-no_tokens": Call(ROPE, rope_arguments, {"tokens": 0}),
    "concat_q": Call(CONCAT_Q, concat_q_arguments, SURPLUS_HEADS, larger=LARGER, uses_all=True),
    "concat_q-no_tokens": Call(CONCAT_Q, concat_q_arguments, {"tokens": 0}),
    "grouped": Call(GROUPED, grouped_arguments, {"one_slot_mapping": True}, PADDED, larger=LARGER_GROUPED),
    "grouped-fp8": Call(
        GROUPED, grouped_arguments, {"format": "fp8", "bounded": False}, PADDED, larger=LARGER_GROUPED, uses_all=True
    ),
    "grouped-no_tokens": Call(GROUPED, grouped_arguments, {"tokens": 0}),
}
