"""Good calls of the attention ops."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multikv import reference
from tests.support.arguments import Arguments
from tests.support.calls.call import Call
from tests.support.calls.reshape_and_cache import CACHE_LAYOUTS, PACKED_LAYOUTS, Pair
from tests.support.tensors import cache_dtype, embed

# Layouts of packed caches: name -> (layout of PACKED_LAYOUTS, whether the values are interleaved).
PACKED = {
    "packed": ("dense", False),
    "packed_interleaved": ("dense", True),
    "packed_padded": ("padded", False),
    "packed_interleaved_padded": ("padded", True),
    "packed_unaligned": ("unaligned", True),
    "packed_slots_outermost": ("slots_outermost", False),
}
LAYOUTS = (*CACHE_LAYOUTS, *PACKED)


def make_caches(
    layout: str,
    blocks: int,
    block_size: int,
    heads: int,
    sizes: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Pair:
    if layout not in PACKED:
        return CACHE_LAYOUTS[layout](blocks, block_size, heads, sizes, dtype, device)
    options, is_interleaved = PACKED[layout]
    key_options, value_options, interleaved_options = PACKED_LAYOUTS[options]
    x = next(x for x in (16 // dtype.itemsize, 4, 3, 2, 1) if sizes[0] % x == 0)
    key = embed((blocks, heads, sizes[0] // x, block_size, x), dtype, device, **key_options)
    if not is_interleaved:
        return key, embed((blocks, heads, sizes[1], block_size), dtype, device, **value_options)
    x = next(x for x in (8, 4, 3, 2, 1) if block_size % x == 0)
    return key, embed((blocks, heads, block_size // x, sizes[1], x), dtype, device, **interleaved_options)


def fill_cache(cache: Tensor, values: Tensor, format: str) -> None:
    """Stores random values, as codes if the format is fp8."""
    name = reference.fp8_format(format, cache.dtype)
    if name is None:
        cache.copy_(values)
    else:
        codes = reference.encode_fp8(values * 4, name)
        cache.view(torch.uint8).copy_(codes.view(values.shape))


def slots_first(cache: Tensor, is_key: bool, is_packed: bool) -> Tensor:
    """A view [blocks, block_size, ...] of a cache; for interleaved values [blocks, block_size / x, x, ...]."""
    if not is_packed:
        return cache
    if cache.dim() == 4:
        return cache.permute(0, 3, 1, 2)
    return cache.permute(0, 3, 1, 2, 4) if is_key else cache.permute(0, 2, 4, 1, 3)


def query_bounds(query_lens: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.tensor([0, *query_lens], dtype=torch.int64).cumsum(0).to(dtype)


def attention_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    format: str = "auto",
    float8: bool = False,
    query_lens: Sequence[int] | None = None,  # None: one row each, without cu_query_lens
    lengths: Sequence[int] = (40, 3, 17),
    heads: tuple[int, int] = (4, 2),
    head_size: int = 32,
    value_size: int | None = None,
    block_size: int = 16,
    layout: str = "NHD",
    per_head: bool = False,
    index_dtype: torch.dtype = torch.int32,
    surplus: int = 0,  # rows and columns that no sequence owns
    spare_blocks: int = 2,
    causal: bool = True,
    window_left: int = -1,
    softcap: float = 0.0,
    alibi: bool = False,
    sinks: torch.dtype | None = None,
    mask: bool = False,
    lse: bool = True,
    workspace_bytes: int = 0,
    exact: bool = False,
) -> Arguments:
    """A good call with random contents. With `exact`, every device computes the same bits (see exact_contents)."""
    sizes = (head_size, head_size if value_size is None else value_size)
    rows = (len(lengths) if query_lens is None else sum(query_lens)) + surplus
    columns = max(max((-(-n // block_size) for n in lengths), default=0), 1) + surplus
    table, blocks = make_table(lengths, block_size, columns, surplus, spare_blocks)
    stored = cache_dtype(format, dtype, float8=float8)
    key_cache, value_cache = make_caches(layout, blocks, block_size, heads[1], sizes, stored, device)
    for cache in (key_cache, value_cache):
        fill_cache(cache, torch.randn(cache.shape), format)
    scales = torch.rand(2, heads[1]) + 0.25 if per_head else torch.tensor([[0.37], [1.9]])
    gaps = rows > 0  # PyTorch's opcheck does not take empty tensors with gaps
    query = embed((rows, heads[0], sizes[0]), dtype, device, padding=(0, gaps, 3 * gaps))
    query.copy_(torch.randn(query.shape))
    needs_scale = format not in ("auto", "float32", "float16", "bfloat16")
    call: Arguments = {
        "query": query,
        "key_cache": key_cache,
        "value_cache": value_cache,
        "out": embed((rows, heads[0], sizes[1]), dtype, device, padding=(0, gaps, 5 * gaps)),
        "lse": embed((heads[0], rows), torch.float32, device, order=(1, 0), padding=(gaps, 2 * gaps)) if lse else None,
        "block_table": table.to(index_dtype).to(device),
        "seq_lens": torch.tensor(lengths, dtype=index_dtype, device=device),
        "cu_query_lens": None if query_lens is None else query_bounds(query_lens, index_dtype).to(device),
        "max_query_len": -1,
        "max_seq_len": -1,
        "scale": head_size**-0.5,
        "kv_cache_dtype": format,
        "k_scale": scales[0].to(device) if needs_scale else None,
        "v_scale": scales[1].to(device) if needs_scale else None,
        "workspace": embed((workspace_bytes,), torch.uint8, device),
        "causal": causal,
        "window_left": window_left,
        "softcap": softcap,
        "alibi_slopes": torch.rand(heads[0], device=device) * 0.2 if alibi else None,
        "sinks": None if sinks is None else torch.randn(heads[0], device=device).to(sinks),
        "query_mask": torch.randint(-(2**63), 2**63 - 1, (rows,), device=device) if mask else None,
    }
    if mask:
        call["max_query_len"] = max(query_lens or (1,))
    return exact_contents(call) if exact else call


def make_table(lengths: Sequence[int], block_size: int, columns: int, surplus: int, spare: int) -> tuple[Tensor, int]:
    """A block table with distinct random blocks, and how many there are. Entries that no key needs are out of range."""
    needed = [-(-n // block_size) for n in lengths]
    blocks = sum(needed) + spare
    table = torch.full((len(lengths) + surplus, columns), 2**31 - 1)
    table[:, ::2] = -7
    ids = torch.randperm(blocks)
    for s, count in enumerate(needed):
        table[s, :count], ids = ids[:count], ids[count:]
    return table, blocks


def exact_contents(call: Arguments) -> Arguments:
    """Contents of which every order of arithmetic gives the same bits.

    Each row sees its own key alone, so that the only softmax weight is 1. A scale of 0 makes every score 0, so that lse
    is 0 in any base of logarithms. Values are small integers, and their scales powers of two.
    """
    query, fp8 = call["query"], call["k_scale"] is not None
    query.copy_(torch.randint(-2, 3, query.shape))
    for name in ("key_cache", "value_cache"):
        cache = call[name]
        values = torch.randint(-2, 3, cache.shape).float()
        fill_cache(cache, values / 4 if fp8 else values, call["kv_cache_dtype"])
    for name, scale in (("k_scale", 0.5), ("v_scale", 2.0)):
        if call[name] is not None:
            call[name].fill_(scale)
    if call["sinks"] is not None:
        call["sinks"].fill_(-float("inf"))
    if call["query_mask"] is not None:  # of a row's own key
        bounds = range(len(query) + 1) if call["cu_query_lens"] is None else call["cu_query_lens"].tolist()
        for begin, end in itertools.pairwise(bounds):
            call["query_mask"][begin:end] = torch.tensor([1 << i for i in range(end - begin)], dtype=torch.int64)
    return call | {"scale": 0.0, "window_left": 0}


def v1_arguments(device: torch.device | str = "cpu", **options: object) -> Arguments:
    """A good call of paged_attention_v1. The options are those of attention_arguments."""
    call = attention_arguments(device, **{"layout": "packed", "lse": False} | options)
    one = torch.ones(1, device=device)
    if options.get("exact"):
        # A length of 1, because v1 has no window.
        call["seq_lens"].fill_(1)
    return {
        "out": call["out"],
        "query": call["query"],
        "key_cache": call["key_cache"],
        "value_cache": call["value_cache"],
        "num_kv_heads": call["key_cache"].shape[1],
        "scale": call["scale"],
        "block_tables": call["block_table"],
        "seq_lens": call["seq_lens"],
        "block_size": call["key_cache"].shape[3],
        "max_seq_len": -1,
        "alibi_slopes": call["alibi_slopes"],
        "kv_cache_dtype": call["kv_cache_dtype"],
        "k_scale": one if call["k_scale"] is None else call["k_scale"],
        "v_scale": one if call["v_scale"] is None else call["v_scale"],
        "tp_rank": 0,
        "blocksparse_local_blocks": 0,
        "blocksparse_vert_stride": 0,
        "blocksparse_block_size": 64,
        "blocksparse_head_sliding_step": 0,
    }


def v2_arguments(device: torch.device | str = "cpu", *, partitions: int = 1, **options: object) -> Arguments:
    call = v1_arguments(device, **options)
    rows, heads, size = call["query"].shape
    sums, maxima = (torch.full((rows, heads, partitions), 7.0, device=device) for _ in range(2))
    tmp_out = torch.full((rows, heads, partitions, size), 7.0, dtype=call["query"].dtype, device=device)
    out = {"out": call.pop("out")}
    return out | {"exp_sums": sums, "max_logits": maxima, "tmp_out": tmp_out} | call


def merge_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    tokens: int = 9,
    heads: int = 3,
    head_size: int = 40,
    surplus: int = 0,
    output_lse: bool = True,
    prefill_tokens: int | None = None,
    output: torch.dtype | None = None,
    exact: bool = False,
) -> Arguments:
    """A good call of merge_attn_states; `output` is a float8 dtype or None.

    With `exact`, one side of each row is empty, so that every device computes the same bits.
    """
    gaps = tokens > 0  # PyTorch's opcheck does not take empty tensors with gaps
    prefix, suffix = (
        embed((tokens + surplus, heads, head_size), dtype, device, padding=(0, gaps, 3 * gaps)).copy_(
            torch.randint(-8, 9, (tokens + surplus, heads, head_size))
            if exact
            else torch.randn(tokens + surplus, heads, head_size)
        )
        for _ in range(2)
    )
    lses = [embed((heads, tokens + surplus), torch.float32, device, order=order) for order in ((1, 0), (0, 1))]
    for lse in lses:
        lse.copy_(torch.randn(lse.shape) * 3)
    if exact:
        lses[1].copy_(-float("inf"))
        lses[1][:, ::2], lses[0][:, ::3] = float("inf"), -float("inf")
    return {
        "output": embed((tokens, heads, head_size), output or dtype, device, padding=(0, 2 * gaps, gaps)),
        "output_lse": embed((heads, tokens), torch.float32, device, padding=(0, 2 * gaps)) if output_lse else None,
        "prefix_output": prefix,
        "prefix_lse": lses[0],
        "suffix_output": suffix,
        "suffix_lse": lses[1],
        "prefill_tokens_with_context": prefill_tokens,
        "output_scale": None if output is None else torch.tensor([0.5], device=device),
    }


Make = Callable[..., Arguments]
ATTENTION, MERGE, V1, V2 = "paged_attention", "merge_attn_states", "paged_attention_v1", "paged_attention_v2"
FLOAT_OUTPUTS = ("out", "lse")
LARGER = {"lengths": (600, 0, 300, 1000), "query_lens": (40, 0, 1, 63)}
ALL = {
    "exact": True,
    "format": "fp8",
    "query_lens": (3, 0, 1),
    "alibi": True,
    "sinks": torch.float32,
    "mask": True,
    "per_head": True,
    "workspace_bytes": 4096,
}
V1_ALL = {"exact": True, "alibi": True, "format": "fp8", "per_head": True}

CALLS = {
    "attention": Call(ATTENTION, attention_arguments, ALL, {}, FLOAT_OUTPUTS, LARGER, uses_all=True),
    "attention-decode": Call(
        ATTENTION, attention_arguments, {"exact": True, "lse": False}, {}, FLOAT_OUTPUTS, {"lengths": (900,) * 4}
    ),
    "attention-packed": Call(
        ATTENTION,
        attention_arguments,
        {"exact": True, "layout": "packed_interleaved", "query_lens": (5, 1, 2), "format": "fp8_e5m2"},
        {},
        FLOAT_OUTPUTS,
        LARGER,
    ),
    "attention-no_sequences": Call(ATTENTION, attention_arguments, {"lengths": (), "query_lens": ()}),
    "attention-v1": Call(V1, v1_arguments, V1_ALL, {}, FLOAT_OUTPUTS, uses_all=True),
    "attention-v1-floats": Call(V1, v1_arguments, {"exact": True}, {}, FLOAT_OUTPUTS),
    "attention-v2": Call(V2, v2_arguments, V1_ALL, {}, FLOAT_OUTPUTS, uses_all=True),
    "merge": Call(
        MERGE,
        merge_arguments,
        {"exact": True, "prefill_tokens": 6, "output": torch.float8_e4m3fn},
        {},
        ("output", "output_lse"),
        {"tokens": 3000},
        uses_all=True,
    ),
    "merge-floats": Call(MERGE, merge_arguments, {"exact": True, "surplus": 2}, {}, ("output", "output_lse")),
    "merge-no_tokens": Call(MERGE, merge_arguments, {"tokens": 0}),
}
