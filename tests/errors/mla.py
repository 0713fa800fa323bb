"""Bad calls of the ops of multi-head latent attention."""

from __future__ import annotations

import torch

from tests.errors.bad_call import (
    EXPANDED,
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
from tests.support.calls.mla import concat_q_arguments, grouped_arguments, mla_arguments


def mla(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("concat_and_cache_mla", mla_arguments, what, changes, message, options)


def ds_mla(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return mla(f"ds_mla_{what}", changes, message, format="fp8_ds_mla", **options)


def grouped(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("concat_and_cache_mla_grouped", grouped_arguments, what, changes, message, options)


def concat_q(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("concat_mla_q", concat_q_arguments, what, changes, message, options)


MLA_TENSORS = ("kv_c", "k_pe", "kv_cache", "slot_mapping", "scale")
GROUPED_TENSORS = ("kv_c", "k_pe", "slot_mapping", "kv_cache_ptrs")
CONCAT_Q_TENSORS = ("ql_nope", "q_pe", "q_out")
TENSORS = ((mla, MLA_TENSORS), (grouped, GROUPED_TENSORS))

# Of any op: tensors that are None, not dense inside, expanded. (A scale of one element has no stride.)
BAD_ARGUMENTS = [
    *(make(f"{name}_none", {name: None}, NONE.format(name), format="fp8") for make, names in TENSORS for name in names),
    *(
        make(f"{name}_stride", {name: every_second}, STRIDE.format(name))
        for make, names in TENSORS
        for name in names
        if not name.endswith("scale")
    ),
    *(concat_q(f"{name}_none", {name: None}, NONE.format(name)) for name in CONCAT_Q_TENSORS),
    *(concat_q(f"{name}_stride", {name: every_second}, STRIDE.format(name)) for name in CONCAT_Q_TENSORS),
    grouped("kv_scales_stride", {"kv_scales": every_second}, STRIDE.format("kv_scales"), format="fp8"),
    mla("kv_cache_expanded", {"kv_cache": expanded(0)}, EXPANDED.format("kv_cache", 0)),
    concat_q("q_out_expanded", {"q_out": expanded(0)}, EXPANDED.format("q_out", 0)),
]

# Good calls by default: kv_c [7, 512], k_pe [7, 64], kv_cache [3, 16, 576], bfloat16.
MLA_FORMAT_NAMES = f"{FORMAT_NAMES}, fp8_ds_mla"
BAD_ARGUMENTS += [
    mla("kv_c_rank", {"kv_c": lambda x: x[0]}, "kv_c: expected 2 dimensions, got shape [512]"),
    mla("k_pe_rank", {"k_pe": lambda x: x[:, None]}, "k_pe: expected 2 dimensions, got shape [7, 1, 64]"),
    mla(
        "kv_cache_rank",
        {"kv_cache": lambda x: x[:, :, None]},
        "kv_cache: expected 3 dimensions, got shape [3, 16, 1, 576]",
    ),
    mla("slots_rank", {"slot_mapping": lambda x: x[None]}, "slot_mapping: expected 1 dimension, got shape [1, 7]"),
    mla("kv_c_dtype", {"kv_c": to("uint8")}, "kv_c: expected dtype float32, float16 or bfloat16, got uint8"),
    mla("k_pe_dtype", {"k_pe": to("float16")}, "k_pe: expected dtype bfloat16 like kv_c, got float16"),
    mla("kv_cache_dtype", {"kv_cache": to("float16")}, "kv_cache: expected dtype bfloat16 like the input, got float16"),
    mla("slots_dtype", {"slot_mapping": to("bool")}, "slot_mapping: expected dtype int32 or int64, got bool"),
    mla(
        "kv_c_rows",
        {"kv_c": lambda x: x[:6]},
        "kv_c: expected at least 7 rows (slots in slot_mapping), got shape [6, 512]",
    ),
    mla(
        "k_pe_rows",
        {"k_pe": lambda x: x[:6]},
        "k_pe: expected at least 7 rows (slots in slot_mapping), got shape [6, 64]",
    ),
    mla(
        "entry",
        {"kv_cache": lambda x: x[..., :512]},
        "kv_cache: expected size 576 (sizes of kv_c and k_pe) in dimension 2, got shape [3, 16, 512]",
    ),
    mla(
        "no_rope",
        {"k_pe": lambda x: x[:, :0]},
        "kv_cache: expected size 512 (sizes of kv_c and k_pe) in dimension 2, got shape [3, 16, 576]",
    ),
    mla(
        "empty_blocks",
        {"kv_cache": lambda x: x[:, :0]},
        "kv_cache: expected a block size of at least 1, got shape [3, 0, 576]",
    ),
    *(
        mla(
            f"format_{name}",
            {"kv_cache_dtype": name},
            f"kv_cache_dtype: expected one of {MLA_FORMAT_NAMES}, got '{name}'",
        )
        for name in ("ue8m0", "fp32", "nvfp4")
    ),
    mla(
        "format_of_another_float",
        {"kv_cache_dtype": "float32"},
        "kv_cache_dtype: expected auto or bfloat16, the dtype of the input, got float32",
    ),
    mla(
        "e5m2_cache",
        {"kv_cache": lambda x: x.view(torch.float8_e5m2)},
        "kv_cache: expected dtype uint8, float8_e4m3fn or float8_e4m3fnuz, got float8_e5m2",
        format="fp8",
    ),
    mla("scale_dtype", {"scale": to("float64")}, "scale: expected dtype float32, got float64", format="fp8"),
    mla("scale_size", {"scale": lambda x: x.expand(2)}, "scale: expected 1 element, got shape [2]", format="fp8"),
    mla("scale_empty", {"scale": lambda x: x[:0]}, "scale: expected 1 element, got shape [0]", format="fp8"),
    ds_mla(
        "float32",
        {"kv_c": to("float32"), "k_pe": to("float32")},
        "kv_c: expected dtype float16 or bfloat16 for fp8_ds_mla, got float32",
    ),
    ds_mla(
        "latent_size",
        {"kv_c": lambda x: x[:, :128]},
        "kv_c: expected size 512 (latent size of fp8_ds_mla) in dimension 1, got shape [7, 128]",
    ),
    ds_mla(
        "rope_size",
        {"k_pe": lambda x: x[:, :32]},
        "k_pe: expected size 64 or 0 (rope size of fp8_ds_mla) in the innermost dimension, got shape [7, 32]",
    ),
    ds_mla(
        "entry",
        {"kv_cache": lambda x: x[..., :576]},
        "kv_cache: expected size 656 (bytes of an fp8_ds_mla entry) in dimension 2, got shape [3, 16, 576]",
    ),
    ds_mla(
        "entry_of_2_bytes",
        {"kv_cache": lambda x: x[..., :288].view(torch.bfloat16)},
        "kv_cache: expected size 328 (656 bytes of an fp8_ds_mla entry) in dimension 2, got shape [3, 16, 144]",
    ),
    ds_mla(
        "entry_of_4_bytes",
        {"kv_cache": to("int32")},
        "kv_cache: expected size 164 (656 bytes of an fp8_ds_mla entry) in dimension 2, got shape [3, 16, 656]",
    ),
    *(
        ds_mla(
            dtype,
            {"kv_cache": to(dtype)},
            f"kv_cache: expected dtype uint8, float8_e4m3fn or float8_e4m3fnuz, got {dtype}",
        )
        for dtype in ("int64", "float8_e5m2", "int8")
    ),
]

# Good calls by default: kv_c [3, 7, 512], k_pe [3, 7, 64], slot_mapping [3, 7], caches of 3 blocks of 16.
BAD_ARGUMENTS += [
    grouped("kv_c_rank", {"kv_c": lambda x: x[0]}, "kv_c: expected 3 dimensions, got shape [7, 512]"),
    grouped("k_pe_rank", {"k_pe": lambda x: x[0]}, "k_pe: expected 3 dimensions, got shape [7, 64]"),
    grouped("kv_c_dtype", {"kv_c": to("int32")}, "kv_c: expected dtype float32, float16 or bfloat16, got int32"),
    grouped("k_pe_dtype", {"k_pe": to("float32")}, "k_pe: expected dtype bfloat16 like kv_c, got float32"),
    grouped(
        "k_pe_layers",
        {"k_pe": lambda x: x[:2]},
        "k_pe: expected size 3 (layers of kv_c) in dimension 0, got shape [2, 7, 64]",
    ),
    grouped(
        "kv_c_rows",
        {"kv_c": lambda x: x[:, :6]},
        "kv_c: expected at least 7 (slots in slot_mapping) in dimension 1, got shape [3, 6, 512]",
    ),
    grouped(
        "k_pe_rows",
        {"k_pe": lambda x: x[:, :6]},
        "k_pe: expected at least 7 (slots in slot_mapping) in dimension 1, got shape [3, 6, 64]",
    ),
    grouped("slots_rank", {"slot_mapping": lambda x: x[0]}, "slot_mapping: expected 2 dimensions, got shape [7]"),
    grouped("slots_dtype", {"slot_mapping": to("float32")}, "slot_mapping: expected dtype int32 or int64, got float32"),
    grouped(
        "slots_layers",
        {"slot_mapping": lambda x: x[:2]},
        "slot_mapping: expected size 3 (layers of kv_c) in dimension 0, got shape [2, 7]",
    ),
    grouped(
        "addresses_rank", {"kv_cache_ptrs": lambda x: x[None]}, "kv_cache_ptrs: expected 1 dimension, got shape [1, 3]"
    ),
    grouped("addresses_dtype", {"kv_cache_ptrs": to("int32")}, "kv_cache_ptrs: expected dtype int64, got int32"),
    grouped(
        "addresses_layers",
        {"kv_cache_ptrs": lambda x: x[:2]},
        "kv_cache_ptrs: expected size 3 (layers of kv_c) in dimension 0, got shape [2]",
    ),
    grouped("block_size", {"block_size": 0}, "block_size: expected at least 1, got 0"),
    grouped("block_size_negative", {"block_size": -(2**63)}, f"block_size: expected at least 1, got {-(2**63)}"),
    grouped("block_stride", {"block_stride": -1}, "block_stride: expected at least 0, got -1"),
    grouped("entry_stride", {"entry_stride": -576}, "entry_stride: expected at least 0, got -576"),
    # Good strides: entries of 576 elements, blocks of 16 entries; 3 blocks.
    *(
        grouped(
            f"overlapping_{name}",
            {name: 575},
            f"{name}: expected at least 576 (elements of an entry; entries must not overlap), got 575",
        )
        for name in ("entry_stride", "block_stride")
    ),
    *(
        grouped(
            f"overlapping_blocks_{num_blocks}",
            {"block_stride": 16 * 576 - 1, "num_blocks": num_blocks},
            "block_stride: expected at least 15 * 576 + 576 (elements of a block; entries must not overlap), got 9215",
        )
        for num_blocks in (3, -1)
    ),
    grouped(
        "overlapping_slots_outermost",
        {"block_stride": 576, "entry_stride": 3 * 576 - 1},
        "entry_stride: expected at least 2 * 576 + 576 (elements at one offset of all blocks; entries must not "
        "overlap), got 1727",
    ),
    grouped(
        "overlapping_beyond_int64",
        {"block_stride": 2**62, "entry_stride": 2**61},
        f"block_stride: expected at least 15 * {2**61} + 576 (elements of a block; entries must not overlap), "
        f"got {2**62}",
    ),
    grouped("num_blocks", {"num_blocks": -2}, "num_blocks: expected at least 0, or -1 (unbounded), got -2"),
    grouped(
        "ds_mla", {"kv_cache_dtype": "fp8_ds_mla"}, f"kv_cache_dtype: expected one of {FORMAT_NAMES}, got 'fp8_ds_mla'"
    ),
    grouped(
        "format_of_another_float",
        {"kv_cache_dtype": "float16"},
        "kv_cache_dtype: expected auto or bfloat16, the dtype of the input, got float16",
    ),
    grouped("no_scales", {"kv_scales": None}, "kv_scales: expected a tensor for an fp8 format, got None", format="fp8"),
    grouped(
        "scales_rank", {"kv_scales": lambda x: x[0]}, "kv_scales: expected 1 dimension, got shape []", format="fp8"
    ),
    grouped(
        "scales_dtype", {"kv_scales": to("float64")}, "kv_scales: expected dtype float32, got float64", format="fp8"
    ),
    grouped(
        "scales_layers",
        {"kv_scales": lambda x: x[:1]},
        "kv_scales: expected size 3 (layers of kv_c) in dimension 0, got shape [1]",
        format="fp8",
    ),
]

# Good calls by default: ql_nope [7, 16, 512], q_pe [7, 16, 64], q_out [7, 16, 576].
BAD_ARGUMENTS += [
    *(
        concat_q(f"{name}_rank", {name: lambda x: x[0]}, f"{name}: expected 3 dimensions, got shape [16, {size}]")
        for name, size in zip(CONCAT_Q_TENSORS, (512, 64, 576), strict=True)
    ),
    concat_q("q_pe_dtype", {"q_pe": to("float16")}, "q_pe: expected dtype bfloat16 like ql_nope, got float16"),
    concat_q("q_out_dtype", {"q_out": to("int16")}, "q_out: expected dtype bfloat16 like ql_nope, got int16"),
    concat_q(
        "q_pe_tokens",
        {"q_pe": lambda x: x[:6]},
        "q_pe: expected size 7 (tokens of ql_nope) in dimension 0, got shape [6, 16, 64]",
    ),
    concat_q(
        "q_pe_heads",
        {"q_pe": lambda x: x[:, :15]},
        "q_pe: expected size 16 (heads of ql_nope) in dimension 1, got shape [7, 15, 64]",
    ),
    concat_q(
        "q_out_tokens",
        {"q_out": lambda x: x[:6]},
        "q_out: expected size 7 (tokens of ql_nope) in dimension 0, got shape [6, 16, 576]",
    ),
    concat_q(
        "q_out_heads",
        {"q_out": lambda x: x[:, :15]},
        "q_out: expected at least 16 (heads of ql_nope) in dimension 1, got shape [7, 15, 576]",
    ),
    concat_q(
        "q_out_size",
        {"q_out": lambda x: x[..., :575]},
        "q_out: expected size 576 (sizes of ql_nope and q_pe) in dimension 2, got shape [7, 16, 575]",
    ),
]

# A tensor on the CPU in a call on a GPU.
WRONG_DEVICES = [
    *(
        make(f"{name}_on_cpu", {name: on_cpu}, ON_CPU.format(name, "kv_c"), format="fp8")
        for make, names in TENSORS
        for name in names[1:]
    ),
    grouped("kv_scales_on_cpu", {"kv_scales": on_cpu}, ON_CPU.format("kv_scales", "kv_c"), format="fp8"),
    *(concat_q(f"{name}_on_cpu", {name: on_cpu}, ON_CPU.format(name, "ql_nope")) for name in CONCAT_Q_TENSORS[1:]),
]

SLOT = {"slot_mapping": with_value(3, 48)}
BAD_INDICES = [
    *(
        mla(f"slot_{format}", SLOT, "slot_mapping[3]: expected a slot below 48, got 48", format=format)
        for format in ("auto", "fp8", "fp8_ds_mla")
    ),
    grouped("slot", {"slot_mapping": with_value((1, 4), 48)}, "slot_mapping[1, 4]: expected a slot below 48, got 48"),
    grouped(
        "slot_int32",
        {"slot_mapping": with_value((2, 6), 10**6)},
        "slot_mapping[2, 6]: expected a slot below 48, got 1000000",
        index_dtype=torch.int32,
        format="fp8",
    ),
]
