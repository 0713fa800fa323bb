"""Good calls of the ops that norm and rotate queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.support.arguments import Arguments
from tests.support.calls.call import Call
from tests.support.calls.mla import make_cos_sin_cache, make_slots, rope_values
from tests.support.calls.reshape_and_cache import CACHE_LAYOUTS, PACKED_LAYOUTS
from tests.support.tensors import cache_dtype, embed, randomise

Options = dict[str, object]

# Options of embed for [tokens, heads, head_size].
OUTPUT_LAYOUTS: dict[str, Options] = {
    "dense": {},
    "padded": {"padding": (0, 1, 3)},
    "aligned": {"padding": (0, 1, 16)},
    "unaligned": {"offset": 1},
    "heads_first": {"order": (1, 0, 2)},
}


def _caches(
    shape: tuple[int, int, int, int],
    stored: torch.dtype,
    device: torch.device | str,
    cache: str,
    x: int | None,
    value_x: int | None,
) -> tuple[Tensor, Tensor]:
    blocks, block_size, heads, head_size = shape
    if x is None:
        return CACHE_LAYOUTS[cache](blocks, block_size, heads, (head_size, head_size), stored, device)
    key_options, value_options, interleaved_options = PACKED_LAYOUTS[cache]
    key = embed((blocks, heads, head_size // x, block_size, x), stored, device, **key_options)
    if value_x is None:
        return key, embed((blocks, heads, head_size, block_size), stored, device, **value_options)
    shape_ = (blocks, heads, block_size // value_x, head_size, value_x)
    return key, embed(shape_, stored, device, **interleaved_options)


def _weight(size: int, dtype: torch.dtype, device: torch.device | str, offset: int = 0) -> Tensor:
    weight = embed((size,), dtype, device, offset=offset)
    return weight.copy_(torch.randn(size) + 0.5)


def fused_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    table_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    format: str = "auto",
    float8: bool = False,
    q_dtype: torch.dtype | None = None,
    tokens: int = 7,
    heads: int = 4,
    kv_heads: int = 2,
    head_size: int = 64,
    rotary_size: int | None = None,
    rotary_offset: int = 0,
    is_neox: bool = True,
    rope: bool = True,
    norm: str | None = None,
    weights: bool = True,
    weight_bias: float = 0.0,
    eps: float = 1e-6,
    section: tuple[int, int, int] | None = None,
    interleaved: bool = False,
    k_out: bool = False,
    in_place: bool = False,
    blocks: int | None = None,
    block_size: int = 16,
    cache: str | None = None,
    x: int | None = None,
    value_x: int | None = None,
    per_head: bool = False,
    outputs: str = "dense",
    columns: int = 0,
    column_padding: int = 0,
    offset: int = 0,
    table_options: Options | None = None,
    num_positions: int = 20,
    index_dtype: torch.dtype = torch.int64,
    position_dtype: torch.dtype = torch.int64,
    share_of_padding: float = 0.0,
    surplus_rows: int = 0,
    extreme: bool = False,
) -> Arguments:
    """A good call; with `x`, of packed caches. Only an `extreme` one yields NaNs.

    `columns` is the number of columns of qkv that the op does not read, `column_padding` that of elements between rows.
    """
    blocks = -(-tokens // block_size) + 2 if blocks is None else blocks
    rotary_size = head_size - rotary_offset if rotary_size is None else rotary_size
    rows = tokens + surplus_rows
    width = (heads + 2 * kv_heads) * head_size
    qkv = embed((rows, width + columns), dtype, device, padding=(0, column_padding), offset=offset)
    randomise(qkv) if extreme else qkv.copy_(rope_values(qkv.shape, dtype))
    if in_place:
        q_out = qkv[:, : heads * head_size].unflatten(1, (heads, head_size))
    else:
        q_out = embed((rows, heads, head_size), q_dtype or dtype, device, **OUTPUT_LAYOUTS[outputs])
    keys = embed((rows, kv_heads, head_size), dtype, device, **OUTPUT_LAYOUTS[outputs]) if k_out else None
    stored = cache_dtype(format, dtype, float8=float8)
    cache = ("NHD" if x is None else "dense") if cache is None else cache
    key_cache, value_cache = _caches((blocks, block_size, kv_heads, head_size), stored, device, cache, x, value_x)
    table = None
    if rope:
        table = embed((num_positions, rotary_size), table_dtype or dtype, device, **(table_options or {}))
        randomise(table) if extreme else table.copy_(make_cos_sin_cache(num_positions, rotary_size, table.dtype))
    shape = (rows,) if section is None else (3, rows)
    positions = torch.randint(num_positions, shape, dtype=position_dtype)
    positions[..., tokens:] = 1_000_000  # nobody may look at them
    if not rope:
        positions.fill_(-5)
    scales = (torch.rand(2, kv_heads if per_head else 1) + 0.25).to(device)
    is_fp8 = stored.itemsize == 1
    sizes = (heads * head_size, kv_heads * head_size) if norm == "all_heads" else (head_size, head_size)
    q_weight, k_weight = (
        _weight(size, weight_dtype or dtype, device, offset) if norm and weights else None for size in sizes
    )
    return {
        "qkv": qkv,
        "q_out": q_out,
        "k_out": keys,
        "key_cache": key_cache,
        "value_cache": value_cache,
        "slot_mapping": make_slots(tokens, blocks * block_size, index_dtype, share_of_padding).to(device),
        "positions": positions.to(device),
        "cos_sin_cache": table,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_size": head_size,
        "is_neox": is_neox,
        "kv_cache_dtype": format,
        "k_scale": scales[0] if is_fp8 else None,
        "v_scale": scales[1] if is_fp8 else None,
        "q_scale": torch.tensor([0.23], device=device) if q_dtype is not None else None,
        "q_weight": q_weight,
        "k_weight": k_weight,
        "eps": eps if norm else -1.0,
        "weight_bias": weight_bias,
        "norm_order": norm or "head",
        "rotary_offset": rotary_offset,
        "mrope_section": None if section is None else list(section),
        "mrope_interleaved": interleaved,
        "k_scales": None,
        "v_scales": None,
    }


def norm_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    weight_dtype: torch.dtype | None = None,
    shape: tuple[int, ...] = (7, 3, 64),
    weights: bool = True,
    weight_bias: float = 0.0,
    eps: float = 1e-6,
    in_place: bool = False,
    input_options: Options | None = None,
    out_options: Options | None = None,
    extreme: bool = False,
) -> Arguments:
    """A good call of rms_norm. Only an `extreme` one yields NaNs."""
    input = embed(shape, dtype, device, **(input_options or {}))
    randomise(input) if extreme else input.copy_(rope_values(input.shape, dtype))
    return {
        "out": input if in_place else embed(shape, dtype, device, **(out_options or {})),
        "input": input,
        "weight": _weight(shape[-1], weight_dtype or dtype, device) if weights else None,
        "eps": eps,
        "weight_bias": weight_bias,
    }


def rotary_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    table_dtype: torch.dtype | None = None,
    tokens: int = 7,
    heads: int = 4,
    kv_heads: int | None = 2,
    head_size: int = 64,
    rotary_size: int | None = None,
    is_neox: bool = True,
    flat: bool = False,
    layout: str = "dense",
    table_options: Options | None = None,
    num_positions: int = 20,
    position_dtype: torch.dtype = torch.int64,
    extreme: bool = False,
) -> Arguments:
    """A good call of rotary_embedding. Only an `extreme` one yields NaNs."""
    rotary_size = head_size if rotary_size is None else rotary_size

    def make(count: int) -> Tensor:
        if flat:
            x = embed((tokens, count * head_size), dtype, device, padding=(0, 5 if layout == "padded" else 0))
        else:
            x = embed((tokens, count, head_size), dtype, device, **OUTPUT_LAYOUTS[layout])
        return randomise(x) if extreme else x.copy_(rope_values(x.shape, dtype))

    table = embed((num_positions, rotary_size), table_dtype or dtype, device, **(table_options or {}))
    randomise(table) if extreme else table.copy_(make_cos_sin_cache(num_positions, rotary_size, table.dtype))
    return {
        "positions": torch.randint(num_positions, (tokens,), dtype=position_dtype).to(device),
        "query": make(heads),
        "key": None if kv_heads is None else make(kv_heads),
        "head_size": head_size,
        "cos_sin_cache": table,
        "is_neox": is_neox,
    }


FUSED, NORM, ROTARY = "qk_norm_rope_cache", "rms_norm", "rotary_embedding"
FUSED_OUTPUTS = ("q_out", "k_out", "key_cache", "value_cache")  # those that may hold NaNs
ROTARY_OUTPUTS = ("query", "key")
PADDED = {"share_of_padding": 0.3}
LARGER = {"tokens": 700}

CALLS = {
    "fused": Call(FUSED, fused_arguments, {"columns": 8}, PADDED, FUSED_OUTPUTS, LARGER),
    # float8 queries are in test_qk_norm_rope_cache.py: opcheck cannot compare them.
    "fused-norms": Call(
        FUSED,
        fused_arguments,
        {"norm": "head", "format": "fp8", "k_out": True, "per_head": True, "outputs": "padded"},
        PADDED,
        ("q_out", "k_out"),
        LARGER,
        uses_all=True,
    ),
    "fused-gptj": Call(
        FUSED,
        fused_arguments,
        {"norm": "after_rope", "is_neox": False, "table_dtype": torch.float32, "cache": "HND", "k_out": True},
        PADDED,
        FUSED_OUTPUTS,
        LARGER,
    ),
    "fused-all_heads": Call(
        FUSED,
        fused_arguments,
        {"norm": "all_heads", "rotary_size": 32, "rotary_offset": 16, "weight_dtype": torch.float32, "x": 8},
        PADDED,
        FUSED_OUTPUTS,
        LARGER,
    ),
    "fused-mrope": Call(
        FUSED, fused_arguments, {"section": (16, 8, 8), "dtype": torch.float16, "k_out": True}, PADDED, FUSED_OUTPUTS
    ),
    "fused-no_rope": Call(
        FUSED, fused_arguments, {"rope": False, "norm": "head", "weights": False}, PADDED, FUSED_OUTPUTS, LARGER
    ),
    "fused-nans": Call(FUSED, fused_arguments, {"extreme": True, "norm": "head"}, PADDED, FUSED_OUTPUTS, LARGER),
    "fused-no_tokens": Call(FUSED, fused_arguments, {"tokens": 0}),
    "norm": Call(NORM, norm_arguments, {}, {"weight_bias": 1.0}, ("out",), {"shape": (3000, 3, 64)}, uses_all=True),
    "norm-wide": Call(
        NORM,
        norm_arguments,
        {"shape": (5, 5000), "weight_dtype": torch.float32, "out_options": {"padding": (0, 3)}},
        nan_outputs=("out",),
        larger={"shape": (200, 5000)},
    ),
    "norm-nothing": Call(NORM, norm_arguments, {"shape": (0, 64)}),
    "rotary": Call(ROTARY, rotary_arguments, {}, nan_outputs=ROTARY_OUTPUTS, larger=LARGER, uses_all=True),
    "rotary-gptj": Call(
        ROTARY,
        rotary_arguments,
        {"is_neox": False, "flat": True, "rotary_size": 32, "kv_heads": None, "table_dtype": torch.float32},
        nan_outputs=ROTARY_OUTPUTS,
        larger=LARGER,
    ),
    "rotary-no_tokens": Call(ROTARY, rotary_arguments, {"tokens": 0}),
}
