"""Positions and slots that 32 bits do not hold, in caches whose memory is small or not needed."""

from __future__ import annotations

import pytest
import torch

from multikv import reference
from tests.support.calls.gather import dequant_arguments, gather_arguments
from tests.support.calls.gather_kv import kv_arguments
from tests.support.calls.mla import mla_arguments
from tests.support.comparison import check, run
from tests.support.tensors import embed

BLOCKS, COLUMNS = 13, 12


@pytest.mark.parametrize("block_size", [2**30, 3 * 2**31], ids=["2^30", "3*2^31"])
@pytest.mark.parametrize("num_sequences", [1, 3])
@pytest.mark.parametrize("op", ["cp_gather_cache", "gather_and_maybe_dequant_cache", "gather_kv_cache"])
def test_positions(device, op, num_sequences, block_size):
    """All slots of a block share their memory (stride 0), so that blocks of any size take little."""
    options = {"lengths": (4,) * num_sequences, "index_dtype": torch.int64}
    if op == "cp_gather_cache":
        call = gather_arguments(device, entry=(8,), **options)
    elif op == "gather_kv_cache":
        call = kv_arguments(device, heads=1, head_size=8, **options)
    else:
        call = dequant_arguments(device, entry=8, format="auto", **options)
    # Inside block 11; from block 7 to block 8; from block 3 to block 4.
    starts = [11 * block_size + 5, 8 * block_size - 2, 4 * block_size - 1][:num_sequences]
    table = torch.stack([torch.randperm(BLOCKS)[:COLUMNS] for _ in starts])
    for name in ("src_cache", "key_cache", "value_cache"):
        if name in call:
            shape = call[name].shape[2:]
            call[name] = embed((BLOCKS, 1, *shape), torch.bfloat16, device).expand(BLOCKS, block_size, *shape)
    check(op, call | {"block_table": table.to(device), "seq_starts": torch.tensor(starts, device=device)})


def test_slots(device):
    """Slots are one byte, so that a cache can have more than 2^32; after each block of 16 slots comes a gap."""
    block_size, stride, blocks = 16, 17, 2**28 + 100
    slots = torch.tensor([2**32 - 1, 2**32, 2**32 + 33, 5, blocks * block_size - 1])
    memory = torch.empty(blocks * stride, dtype=torch.uint8, device=device)
    written = slots // block_size * stride + slots % block_size
    near = (written[:, None] + torch.arange(-40, 41)).clamp(0, len(memory) - 1)
    memory[near.flatten().to(device)] = 90
    call = mla_arguments(device, format="fp8_e4m3fn", tokens=len(slots), latent_size=1, rope_size=0)
    call["kv_c"].copy_(torch.arange(1, 6)[:, None])
    call["kv_cache"] = memory.as_strided((blocks, block_size, 1), (stride, 1, 1))
    run("concat_and_cache_mla", call | {"slot_mapping": slots.to(device)})
    codes = reference.quantise(call["kv_c"], call["scale"], "e4m3fn").flatten()
    expected = dict(zip(written.tolist(), codes.tolist(), strict=True))
    for window in near:
        got = memory[window.to(device)].tolist()
        assert got == [expected.get(at, 90) for at in window.tolist()]
