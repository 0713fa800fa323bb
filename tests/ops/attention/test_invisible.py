"""What no row sees never reaches a result: NaN and infinity in invisible slots, bad entries of the block table."""

from __future__ import annotations

import pytest
import torch

from multikv import platforms
from tests.support.arguments import Arguments, copy_of
from tests.support.attention import assert_close, attend, check_attention, exact_rows
from tests.support.calls.attention import attention_arguments, slots_first
from tests.support.parameters import INDEX_DTYPES, short

LENGTHS, QUERY_LENS = (300, 17, 0, 64), (9, 1, 0, 40)
NAN_CODES = {"fp8_e4m3fn": 0x7F, "fp8_e5m2": 0x7D, "fp8_e4m3fnuz": 0x80, "fp8_e5m2fnuz": 0x80}


def poison(call: Arguments, keep: set[tuple[int, int]], value: float) -> Arguments:
    """Fills all slots but those of (block, offset) in `keep` with a NaN, or another value."""
    call = copy_of(call, None)
    is_packed = call["key_cache"].dim() == 5
    for name in ("key_cache", "value_cache"):
        cache = call[name]
        by_slot = slots_first(cache, name == "key_cache", is_packed)
        is_split = is_packed and name == "value_cache" and cache.dim() == 5
        block_size = cache.shape[2] * cache.shape[4] if is_split else by_slot.shape[1]
        for block in range(cache.shape[0]):
            for offset in range(block_size):
                if (block, offset) in keep:
                    continue
                x = cache.shape[-1]
                slot = by_slot[block, offset // x, offset % x] if is_split else by_slot[block, offset]
                if cache.dtype == torch.uint8:
                    slot.fill_(NAN_CODES[call["kv_cache_dtype"]])
                else:
                    slot.fill_(value)
    return call


def seen_slots(call: Arguments, window_left: int = -1) -> set[tuple[int, int]]:
    """The (block, offset) of every key that some row of its sequence sees."""
    block_size = call["key_cache"].shape[3 if call["key_cache"].dim() == 5 else 1]
    bounds = call["cu_query_lens"].tolist()
    seen = set()
    for s, n in enumerate(call["seq_lens"].tolist()):
        q_len = bounds[s + 1] - bounds[s]
        first = 0 if window_left < 0 else max(0, n - q_len - window_left)
        for j in range(first, n if q_len else 0):
            seen.add((int(call["block_table"][s, j // block_size]), j % block_size))
    return seen


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", ["NHD", "HND", "packed", "packed_interleaved"])
@pytest.mark.parametrize("window_left", [-1, 20])
def test_slots_that_no_row_sees(device, layout, value, window_left):
    for heads in ((4, 4), (8, 2)):
        call = attention_arguments(
            device,
            heads=heads,
            head_size=16,
            lengths=LENGTHS,
            query_lens=QUERY_LENS,
            layout=layout,
            window_left=window_left,
        )
        expected = attend(call)
        poisoned = attend(poison(call, seen_slots(call, window_left), value))
        assert torch.equal(poisoned["out"][:50], expected["out"][:50])
        assert torch.equal(poisoned["lse"][:, :50], expected["lse"][:, :50])


@pytest.mark.parametrize("format", NAN_CODES)
def test_codes_of_nan_in_slots_that_no_row_sees(device, format):
    call = attention_arguments(device, format=format, lengths=LENGTHS, query_lens=QUERY_LENS)
    expected, poisoned = attend(call), attend(poison(call, seen_slots(call), 0))
    assert torch.equal(poisoned["out"][:50], expected["out"][:50])


@pytest.mark.parametrize("name", ["key_cache", "value_cache"])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (2, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
def test_nan_of_a_visible_key_reaches_only_the_rows_that_see_it(device, dtype, name, heads):
    """The key is that of token 30 of 40 new tokens; head 0 alone is poisoned."""
    call = attention_arguments(
        device, dtype=dtype, heads=heads, lengths=(100,), query_lens=(40,), block_size=1, window_left=5
    )
    expected, group = attend(call), heads[0] // heads[1]
    call[name][int(call["block_table"][0, 90]), 0, 0] = float("nan")
    ours = attend(call)
    for row in range(40):
        got, wanted = ours["out"][row], expected["out"][row]
        assert torch.equal(got[group:], wanted[group:])
        if 30 <= row <= 35:
            assert got[:group].isnan().all()
        else:
            assert torch.equal(got[:group], wanted[:group])
    assert_close(ours, list(exact_rows(ours)))


@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_keys_that_the_query_mask_hides(device, heads):
    """Hidden keys hold NaN, and a block with no visible key need not exist."""
    call = attention_arguments(
        device, heads=heads, lengths=(300, 20), query_lens=(8, 5), block_size=2, mask=True, window_left=50
    )
    call["query_mask"] &= ~0b1101
    expected = attend(call)
    for s, base in ((0, 292), (1, 15)):
        for bit in (0, 2, 3):
            block = int(call["block_table"][s, (base + bit) // 2])
            for name in ("key_cache", "value_cache"):
                call[name][block, (base + bit) % 2] = float("nan")
    call["block_table"][0, 147] = 10**6  # keys 294 and 295: bits 2 and 3
    ours = attend(call)
    assert torch.equal(ours["out"], expected["out"]) and torch.equal(ours["lse"], expected["lse"])


def test_table_entries_that_no_key_needs(device):
    """attention_arguments fills them with ids that do not exist; the window makes more of them."""
    call = attention_arguments(device, lengths=(300, 40), query_lens=(4, 2), window_left=30, surplus=2)
    call["block_table"][0, :16] = -1  # keys up to 255; the first row sees 266 and later ones
    check_attention(call)
    call["block_table"][0, 16] = 10**6
    if device.type == "cpu":
        with pytest.raises(IndexError, match=r"block_table\[0, 16\]"):
            attend(call)


# Calls for every kernel of a GPU: for few rows and for many, for caches with and without vectors of 16 bytes, and
# without matrix instructions.
GPU_KERNELS = {
    "split": {},
    "split_elements": {"layout": "HND", "head_size": 20},
    "prefill": {"query_lens": (70, 20), "heads": (8, 2)},
    "prefill_elements": {"query_lens": (70, 20), "heads": (8, 2), "layout": "packed_unaligned"},
    "float32": {"dtype": torch.float32},
}


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("name", GPU_KERNELS)
def test_gpu_does_not_see_the_keys_of_bad_blocks(gpu, name, index_dtype):
    platforms.set_check_indices(False)
    options = {"lengths": (300, 40), "query_lens": (4, 2), "index_dtype": index_dtype} | GPU_KERNELS[name]
    call = attention_arguments(gpu, **options)
    for at, block in (((0, 3), -1), ((0, 5), 10**6), ((1, 2), call["key_cache"].shape[0])):
        call["block_table"][at] = block
    if index_dtype == torch.int64:  # the lower 32 bits are those of a block
        call["block_table"][0, 1] += 2**32
    ours = attend(call)
    assert_close(ours, list(exact_rows(call, "skip")))


@pytest.mark.parametrize("name", GPU_KERNELS)
def test_gpu_obeys_bounds_that_are_too_small(gpu, name):
    """Query tokens past max_query_len are not computed, and keys past max_seq_len are not visible."""
    platforms.set_check_indices(False)
    call = attention_arguments(gpu, **{"lengths": (300, 40), "query_lens": (9, 2)} | GPU_KERNELS[name])
    first, second = (call["cu_query_lens"][1:] - call["cu_query_lens"][:-1]).tolist()
    for output in (call["out"], call["lse"]):
        output.fill_(7.0)
    for rows, keys in ((first - 3, 1000), (first, 297), (first - 1, 33)):
        bounded = call | {"max_query_len": rows, "max_seq_len": keys}
        expected = list(exact_rows(bounded, "skip"))
        assert len(expected) == rows + min(second, rows)
        ours = attend(bounded)
        assert_close(ours, expected)
        for row in set(range(first + second)) - {result.row for result in expected}:
            assert torch.equal(ours["out"][row], call["out"][row])
            assert torch.equal(ours["lse"][:, row], call["lse"][:, row])
