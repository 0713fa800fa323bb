"""The vectorised twin of the reference writes what the reference writes."""

from __future__ import annotations

import inspect

import pytest
import torch

from multikv import platforms, reference
from tests.errors.test_errors import BAD_BOUNDS, BAD_INDICES, BAD_PAIRS
from tests.support import vectorised
from tests.support.arguments import copy_of
from tests.support.calls import CALLS
from tests.support.comparison import assert_same_bytes
from tests.support.parameters import FLOATS, FORMATS, FP8_FORMATS, INDEX_DTYPES
from tests.support.tensors import random_bytes

# Calls whose contents and shapes are drawn anew, beside those of the tables: op -> options that are drawn.
DRAWN = {
    "reshape_and_cache_flash": {"dtype": FLOATS, "format": FORMATS, "per_head": (False, True)},
    "reshape_and_cache": {"dtype": FLOATS, "format": FORMATS, "per_head": (False, True), "value_x": (None, 4)},
    "concat_and_cache_mla": {"dtype": FLOATS, "format": FORMATS, "skip_scale": (False, True), "latent_size": (32,)},
    "concat_and_cache_mla_grouped": {
        "dtype": FLOATS,
        "format": FORMATS,
        "bounded": (False, True),
        "latent_size": (32,),
    },
    "gather_and_maybe_dequant_cache": {"dtype": FLOATS, "format": FORMATS, "starts": (None, (1, 60, 17, 3))},
    "gather_kv_cache": {
        "dtype": FLOATS,
        "format": FORMATS,
        "per_head": (False, True),
        "packed": (False, True),
        "value_x": (None, 4),
        "nans": (True,),
    },
    "cp_gather_cache": {"dtype": FLOATS, "entry": ((), (3,), (2, 5)), "spare_columns": (-2, 1)},
    "cp_gather_and_upconvert_fp8_kv_cache": {"host_rows": (None, 0, 50), "dtype": (torch.uint8, torch.float8_e4m3fn)},
    "indexer_k_quant_and_cache": {"dtype": FLOATS, "format": ("auto", "ue8m0", "mxfp8"), "quant_block_size": (8, 32)},
    "qk_norm_rope_cache": {
        "dtype": FLOATS,
        "format": FORMATS,
        "per_head": (False, True),
        "norm": (None, "head", "all_heads"),
        "k_out": (False, True),
    },
    "compute_slot_mapping": {
        "table_rows": (None, (4, 2, -1, 0, 1)),
        "cp_world": (1, 3),
        "cp_interleave": (1, 8),
        "shuffled": (False, True),
        "share_of_negatives": (0.0, 0.3),
        "slot_dtype": INDEX_DTYPES,
    },
}


def assert_equal(op, arguments, nan_outputs=(), **options):
    expected, got = copy_of(arguments), copy_of(arguments)
    getattr(reference, op)(**expected, **options)
    getattr(vectorised, op)(**got, **options)
    assert_same_bytes(got, expected, nan_outputs)


def test_has_every_op_with_its_signature():
    for op in platforms.op_names():
        ours, theirs = (inspect.signature(getattr(module, op)) for module in (vectorised, reference))
        assert ours == theirs, op


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_encodes_alike(format):
    """All 16-bit floats, random float32 patterns, the numbers halfway between two values and their neighbours."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = reference.decode_fp8(torch.arange(256, dtype=torch.uint8), format)
    values = values[values.isfinite()].sort().values
    halfway = (values[:-1] + values[1:]) / 2
    infinity = torch.tensor(float("inf"))
    near = [x.nextafter(towards) for x in (values, halfway) for towards in (infinity, -infinity)]
    random = random_bytes(4 * 100_000).view(torch.float32)
    for x in (every.view(torch.float16), every.view(torch.bfloat16), values, halfway, *near, random):
        assert torch.equal(vectorised.encode_fp8(x, format), reference.encode_fp8(x, format))


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_decodes_alike(format):
    codes = torch.arange(256, dtype=torch.uint8)
    ours, theirs = (x.decode_fp8(codes, format).view(torch.int32) for x in (vectorised, reference))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_the_tables(name):
    call = CALLS[name]
    for options in ({}, call.others):
        assert_equal(call.op, call.arguments(**options), call.nan_outputs)


@pytest.mark.parametrize("op", DRAWN)
def test_drawn_calls(op):
    make = next(call.make for call in CALLS.values() if call.op == op)
    for seed in range(20):
        torch.manual_seed(seed)
        options = {name: choices[torch.randint(len(choices), ())] for name, choices in DRAWN[op].items()}
        call = make(**options)
        if (slots := call.get("slot_mapping")) is not None:
            _spoil(slots, seed)
        nan_outputs = [name for name, x in call.items() if isinstance(x, torch.Tensor) and x.dtype in FLOATS]
        has_option = "e4m3_of_bytes" in inspect.signature(getattr(reference, op)).parameters
        for extra in [{"e4m3_of_bytes": name} for name in ("e4m3fn", "e4m3fnuz")] if has_option else [{}]:
            assert_equal(op, call, nan_outputs if "gather" in op else (), **extra)


def _spoil(slots, seed):
    """Makes some slots padding and others those of another token."""
    flat = slots.view(-1) if slots.is_contiguous() else slots[0]
    flat[torch.randint(len(flat), (2,))] = -1 - seed
    flat[torch.randint(len(flat), (3,))] = flat[torch.randint(len(flat), (1,))].clone()


@pytest.mark.parametrize("bad", BAD_INDICES, ids=str)
def test_skips_the_same_bad_indices(bad):
    assert_equal(bad.op, bad.call(torch.device("cpu")), bad_indices="skip")


@pytest.mark.parametrize("bad", BAD_INDICES + BAD_BOUNDS + BAD_PAIRS, ids=str)
def test_raises_of_the_same_bad_indices(bad):
    call = bad.call(torch.device("cpu"))
    expected, got, texts = copy_of(call), copy_of(call), []
    for module, arguments in ((reference, expected), (vectorised, got)):
        with pytest.raises(IndexError) as caught:
            getattr(module, bad.op)(**arguments)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert_same_bytes(got, expected)
