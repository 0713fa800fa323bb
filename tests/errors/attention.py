"""Bad calls of paged_attention, paged_attention_v1 and paged_attention_v2."""

from __future__ import annotations

import torch

from tests.errors.bad_call import (
    EXPANDED,
    FIRST_ON_CPU,
    FORMAT_NAMES,
    NONE,
    ON_CPU,
    STRIDE,
    Bad,
    every_second,
    expanded,
    on_cpu,
    to,
    with_value,
)
from tests.support.calls.attention import attention_arguments, v1_arguments, v2_arguments


def attention(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("paged_attention", attention_arguments, what, changes, message, {"exact": True} | options)


def v1(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("paged_attention_v1", v1_arguments, what, changes, message, {"exact": True} | options)


def v2(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("paged_attention_v2", v2_arguments, what, changes, message, {"exact": True} | options)


def packed(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return attention(what, changes, message, layout="packed", **options)


ALL = {
    "format": "fp8",
    "alibi": True,
    "sinks": torch.float32,
    "mask": True,
    "query_lens": (1, 1, 1),
    "workspace_bytes": 64,
}
TENSORS = ("query", "key_cache", "value_cache", "out", "block_table", "seq_lens", "workspace")

# Good calls by default: query and out [3, 4, 32], caches [8, 16, 2, 32], bfloat16, block_table [3, 3], lse [4, 3].
BAD_ARGUMENTS = [
    *(attention(f"{name}_none", {name: None}, NONE.format(name)) for name in TENSORS),
    *(
        attention(f"{name}_stride", {name: every_second}, STRIDE.format(name), **ALL)
        for name in (*TENSORS, "cu_query_lens", "alibi_slopes", "sinks", "query_mask")
    ),
    *(
        attention(f"{name}_{dtype}", {name: to(dtype)}, f"{name}: expected dtype int32 or int64, got {dtype}", **ALL)
        for name in ("block_table", "seq_lens", "cu_query_lens")
        for dtype in ("int16", "float32")
    ),
    attention(
        "query_dtype", {"query": to("float64")}, "query: expected dtype float32, float16 or bfloat16, got float64"
    ),
    attention("query_rank", {"query": lambda x: x[0]}, "query: expected 3 dimensions, got shape [4, 32]"),
    attention(
        "query_rows",
        {"query": lambda x: x[:2]},
        "query: expected at least 3 rows (elements of seq_lens), got shape [2, 4, 32]",
    ),
    attention(
        "query_heads",
        {"query": lambda x: x[:, :3], "out": lambda x: x[:, :3], "lse": None},
        "query: expected a multiple of 2 heads (heads of key_cache) in dimension 1, got shape [3, 3, 32]",
    ),
    attention(
        "query_head_size_0",
        {"query": lambda x: x[:, :, :0]},
        "query: expected a head size of at least 1, got shape [3, 4, 0]",
    ),
    attention("out_dtype", {"out": to("float32")}, "out: expected dtype bfloat16 like query, got float32"),
    attention("out_rank", {"out": lambda x: x[0]}, "out: expected 3 dimensions, got shape [4, 32]"),
    attention(
        "out_heads",
        {"out": lambda x: x[:, :2]},
        "out: expected size 4 (heads of query) in dimension 1, got shape [3, 2, 32]",
    ),
    attention(
        "out_rows",
        {"out": lambda x: x[:1]},
        "out: expected at least 3 rows (elements of seq_lens), got shape [1, 4, 32]",
    ),
    attention(
        "out_size",
        {"out": lambda x: x[:, :, :16]},
        "out: expected size 32 (head size of value_cache) in dimension 2, got shape [3, 4, 16]",
    ),
    attention("out_expanded", {"out": expanded(1)}, EXPANDED.format("out", 1)),
    attention(
        "key_cache_rank",
        {"key_cache": lambda x: x[0]},
        "key_cache: expected 4 dimensions, or 5 (packed), got shape [16, 2, 32]",
    ),
    attention(
        "key_cache_dtype", {"key_cache": to("float32")}, "key_cache: expected dtype bfloat16 like query, got float32"
    ),
    attention(
        "key_cache_head_size",
        {"key_cache": lambda x: x[..., :16]},
        "key_cache: expected size 32 (head size of query) in dimension 3, got shape [8, 16, 2, 16]",
    ),
    attention(
        "key_cache_block_size_0",
        {"key_cache": lambda x: x[:, :0]},
        "key_cache: expected a block size of at least 1, got shape [8, 0, 2, 32]",
    ),
    attention(
        "value_cache_rank",
        {"value_cache": lambda x: x[0]},
        "value_cache: expected 4 dimensions, got shape [16, 2, 32]",
    ),
    attention(
        "value_cache_rank_5",
        {"value_cache": lambda x: x[None]},
        "value_cache: expected 4 dimensions, got shape [1, 8, 16, 2, 32]",
    ),
    attention(
        "value_cache_dtype",
        {"value_cache": to("float32")},
        "value_cache: expected dtype bfloat16 like key_cache, got float32",
    ),
    attention(
        "value_cache_blocks",
        {"value_cache": lambda x: x[:3]},
        "value_cache: expected size 8 (blocks of key_cache) in dimension 0, got shape [3, 16, 2, 32]",
    ),
    attention(
        "value_cache_block_size",
        {"value_cache": lambda x: x[:, :8]},
        "value_cache: expected size 16 (block size of key_cache) in dimension 1, got shape [8, 8, 2, 32]",
    ),
    attention(
        "value_cache_heads",
        {"value_cache": lambda x: x[:, :, :1]},
        "value_cache: expected size 2 (heads of key_cache) in dimension 2, got shape [8, 16, 1, 32]",
    ),
    attention(
        "value_cache_head_size_0",
        {"value_cache": lambda x: x[..., :0]},
        "value_cache: expected a head size of at least 1, got shape [8, 16, 2, 0]",
    ),
    packed(
        "packed_value_rank",
        {"value_cache": lambda x: x[0]},
        "value_cache: expected 4 dimensions, or 5 (interleaved), got shape [2, 32, 16]",
    ),
    packed(
        "packed_key_x",
        {"key_cache": lambda x: x[..., :7]},
        "key_cache: expected a size in dimension 4 that divides 32 (head size of query), got shape [8, 2, 4, 16, 7]",
    ),
    packed(
        "packed_key_vectors",
        {"key_cache": lambda x: x[:, :, :3]},
        "key_cache: expected size 4 (head size of query / size of dimension 4) in dimension 2, "
        "got shape [8, 2, 3, 16, 8]",
    ),
    packed(
        "packed_value_heads",
        {"value_cache": lambda x: x[:, :1]},
        "value_cache: expected size 2 (heads of key_cache) in dimension 1, got shape [8, 1, 32, 16]",
    ),
    packed(
        "packed_value_size",
        {"value_cache": lambda x: x[:, :, :8]},
        "value_cache: expected size 32 (head size of query) in dimension 2, got shape [8, 2, 8, 16]",
    ),
    packed(
        "packed_value_block_size",
        {"value_cache": lambda x: x[..., :8]},
        "value_cache: expected size 16 (block size of key_cache) in dimension 3, got shape [8, 2, 32, 8]",
    ),
    attention(
        "interleaved_value_x",
        {"value_cache": lambda x: x[..., :5]},
        "value_cache: expected a size in dimension 4 that divides 16 (block size of key_cache), "
        "got shape [8, 2, 2, 32, 5]",
        layout="packed_interleaved",
    ),
    *(
        attention(
            f"format_{name or 'empty'}",
            {"kv_cache_dtype": name},
            f"kv_cache_dtype: expected one of {FORMAT_NAMES}, got '{name}'",
        )
        for name in ("int4", "fp8_ds_mla", "")
    ),
    attention(
        "format_of_another_float",
        {"kv_cache_dtype": "float16"},
        "kv_cache_dtype: expected auto or bfloat16, the dtype of query, got float16",
    ),
    *(
        attention(f"{name}_missing", {name: None}, f"{name}: expected a tensor for an fp8 format, got None", **ALL)
        for name in ("k_scale", "v_scale")
    ),
    *(
        attention(f"{name}_dtype", {name: to("float64")}, f"{name}: expected dtype float32, got float64", **ALL)
        for name in ("k_scale", "v_scale", "alibi_slopes")
    ),
    *(
        attention(
            f"{name}_count",
            {name: lambda x: x.repeat(3)},
            f"{name}: expected 1 element or 2 (one per head), got shape [3]",
            **ALL,
        )
        for name in ("k_scale", "v_scale")
    ),
    attention("lse_dtype", {"lse": to("float64")}, "lse: expected dtype float32, got float64"),
    attention("lse_rank", {"lse": lambda x: x[0]}, "lse: expected 2 dimensions, got shape [3]"),
    attention(
        "lse_heads", {"lse": lambda x: x[:2]}, "lse: expected size 4 (heads of query) in dimension 0, got shape [2, 3]"
    ),
    attention(
        "lse_rows",
        {"lse": lambda x: x[:, :2]},
        "lse: expected at least 3 (elements of seq_lens) in dimension 1, got shape [4, 2]",
    ),
    attention("lse_expanded", {"lse": expanded(1)}, EXPANDED.format("lse", 1)),
    attention("seq_lens_rank", {"seq_lens": lambda x: x[None]}, "seq_lens: expected 1 dimension, got shape [1, 3]"),
    attention("block_table_rank", {"block_table": lambda x: x[0]}, "block_table: expected 2 dimensions, got shape [3]"),
    attention(
        "block_table_rows",
        {"block_table": lambda x: x[:2]},
        "block_table: expected at least 3 rows (elements of seq_lens), got shape [2, 3]",
    ),
    attention(
        "cu_query_lens_size",
        {"cu_query_lens": lambda x: x[:3]},
        "cu_query_lens: expected size 4 (elements of seq_lens + 1) in dimension 0, got shape [3]",
        **ALL,
    ),
    attention("max_query_len", {"max_query_len": -2}, "max_query_len: expected at least 1, or -1, got -2"),
    attention("max_query_len_0", {"max_query_len": 0}, "max_query_len: expected at least 1, or -1, got 0"),
    attention("max_seq_len", {"max_seq_len": -2}, "max_seq_len: expected at least 0, or -1, got -2"),
    attention("workspace_dtype", {"workspace": to("int8")}, "workspace: expected dtype uint8, got int8"),
    attention("workspace_rank", {"workspace": lambda x: x[None]}, "workspace: expected 1 dimension, got shape [1, 0]"),
    attention(
        "workspace_address",
        {"workspace": lambda x: x[3:]},
        "workspace: expected an address that is a multiple of 16, got a remainder of 3",
        workspace_bytes=64,
    ),
    attention(
        "alibi_slopes_size",
        {"alibi_slopes": lambda x: x[:2]},
        "alibi_slopes: expected size 4 (heads of query) in dimension 0, got shape [2]",
        **ALL,
    ),
    attention("sinks_dtype", {"sinks": to("float16")}, "sinks: expected dtype bfloat16 like query, got float16", **ALL),
    attention(
        "sinks_size",
        {"sinks": lambda x: x[:2]},
        "sinks: expected size 4 (heads of query) in dimension 0, got shape [2]",
        **ALL,
    ),
    attention("query_mask_dtype", {"query_mask": to("int32")}, "query_mask: expected dtype int64, got int32", **ALL),
    attention(
        "query_mask_rank",
        {"query_mask": lambda x: x[None]},
        "query_mask: expected 1 dimension, got shape [1, 3]",
        **ALL,
    ),
    attention(
        "query_mask_rows",
        {"query_mask": lambda x: x[:2], "cu_query_lens": None},
        "query_mask: expected at least 3 rows (elements of seq_lens), got shape [2]",
        **ALL,
    ),
    attention("query_mask_not_causal", {"causal": False}, "causal: expected True with query_mask, got False", **ALL),
    attention(
        "query_mask_long",
        {"max_query_len": 65},
        "max_query_len: expected at most 64 with query_mask, got 65",
        **ALL,
    ),
    v1("query_none", {"query": None}, NONE.format("query")),
    v1("key_cache_rank", {"key_cache": lambda x: x[0]}, "key_cache: expected 5 dimensions, got shape [2, 4, 16, 8]"),
    v1("heads", {"num_kv_heads": 4}, "num_kv_heads: expected 2 (that of key_cache), got 4"),
    v1("block_size", {"block_size": 32}, "block_size: expected 16 (that of key_cache), got 32"),
    v1(
        "block_sparse",
        {"blocksparse_vert_stride": 2},
        "blocksparse_vert_stride: expected at most 1 (block sparsity is not supported), got 2",
    ),
    v1(
        "block_tables_rows",
        {"block_tables": lambda x: x[:2]},
        "block_tables: expected at least 3 rows (elements of seq_lens), got shape [2, 3]",
    ),
    v1("k_scale_dtype", {"k_scale": to("float64")}, "k_scale: expected dtype float32, got float64", format="fp8"),
    v1("k_scale_none", {"k_scale": None}, NONE.format("k_scale"), format="fp8"),
    *(v2(f"{name}_none", {name: None}, NONE.format(name)) for name in ("exp_sums", "max_logits", "tmp_out", "query")),
    v2("heads", {"num_kv_heads": 4}, "num_kv_heads: expected 2 (that of key_cache), got 4"),
]

WRONG_DEVICES = [
    attention("query_on_cpu", {"query": on_cpu}, FIRST_ON_CPU.format("query", "key_cache")),
    *(
        attention(f"{name}_on_cpu", {name: on_cpu}, ON_CPU.format(name, "query"), **ALL)
        for name in (
            *TENSORS[1:],
            "lse",
            "cu_query_lens",
            "k_scale",
            "v_scale",
            "alibi_slopes",
            "sinks",
            "query_mask",
        )
    ),
    v1("out_on_cpu", {"out": on_cpu}, ON_CPU.format("out", "query")),
    v2("tmp_out_on_cpu", {"tmp_out": on_cpu}, ON_CPU.format("tmp_out", "exp_sums")),
]

# The visible key of sequence 0 is in column 2 of its table.
BAD_INDICES = [
    *(
        attention(
            f"block_{block}",
            {"block_table": with_value((0, 2), block)},
            f"block_table[0, 2]: expected a block from 0 to 7, got {block}",
        )
        for block in (-1, 8, 2**31 - 1)
    ),
    v1(
        "block",
        {"block_tables": with_value((1, 0), 99)},
        "block_tables[1, 0]: expected a block from 0 to 7, got 99",
    ),
    v2(
        "block",
        {"block_tables": with_value((1, 0), 99)},
        "block_tables[1, 0]: expected a block from 0 to 7, got 99",
    ),
]

BAD_BOUNDS = [
    attention(
        "length_negative", {"seq_lens": with_value(1, -1)}, "seq_lens[1]: expected a length of at least 0, got -1"
    ),
    attention(
        "length_past_the_table",
        {"seq_lens": with_value(1, 49)},
        "seq_lens[1]: expected a length of at most 48 (slots of a row of the block table), got 49",
    ),
    attention(
        "length_past_the_bound",
        {"max_seq_len": 39},
        "seq_lens[0]: expected a length of at most 39 (max_seq_len), got 40",
    ),
    attention(
        "bounds_decrease",
        {"cu_query_lens": with_value(2, 0)},
        "cu_query_lens[2]: expected a bound of at least 1 (bounds must not decrease), got 0",
        query_lens=(1, 1, 1),
    ),
    attention(
        "bound_negative",
        {"cu_query_lens": with_value(0, -1)},
        "cu_query_lens[0]: expected a bound of at least 0, got -1",
        query_lens=(1, 1, 1),
    ),
    attention(
        "bound_past_the_rows",
        {"cu_query_lens": with_value(3, 4)},
        "cu_query_lens[3]: expected a bound of at most 3 (rows of query and out), got 4",
        query_lens=(1, 1, 1),
    ),
    attention(
        "query_past_the_bound",
        {"max_query_len": 1},
        "cu_query_lens[1]: expected a bound of at most 1 (0 + max_query_len), got 2",
        query_lens=(2, 1, 1),
    ),
    v1("length", {"max_seq_len": 0}, "seq_lens[0]: expected a length of at most 0 (max_seq_len), got 1"),
]
