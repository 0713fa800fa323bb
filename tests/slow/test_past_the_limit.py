"""Sizes past 2^31.

Of such tensors only what is used gets memory: a large torch.empty has none until it is written.
"""

from __future__ import annotations

import pytest
import torch

from multikv import reference
from tests.support.arguments import Arguments, copy_of, tensors_of
from tests.support.calls import CALLS
from tests.support.calls.convert import convert_arguments
from tests.support.calls.mla import grouped_arguments
from tests.support.calls.reshape_and_cache import flash_arguments
from tests.support.comparison import assert_same_bytes, run
from tests.support.tensors import distinct_slots, random_bytes

FLASH, PACKED, GATHER = "reshape_and_cache_flash", "reshape_and_cache", "cp_gather_cache"
LIMIT = 2**31


def assert_equal_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    a, b = (x.cpu().contiguous().view(torch.uint8) for x in (a, b))
    assert torch.equal(a, b), f"{(a != b).sum()} of {a.numel()} bytes differ"


@pytest.mark.parametrize("format, dtype", [("fp8_e4m3fn", torch.uint8), ("auto", torch.bfloat16)], ids=["fp8", "auto"])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_cache_past_the_limit(device, layout, format, dtype):
    heads, size, block_size = 8, 128, 16
    block_elements = 2 * block_size * heads * size  # K and V
    blocks = LIMIT // block_elements + 100

    def make(device):
        if layout == "NHD":
            return torch.empty(blocks, 2, block_size, heads, size, dtype=dtype, device=device)
        return torch.empty(blocks, 2, heads, block_size, size, dtype=dtype, device=device).transpose(2, 3)

    cache, expected = make(device), make("cpu")
    boundaries = [LIMIT // 4, LIMIT // 2, LIMIT]  # elements; the first two in bytes of wider types
    slots = [boundary // block_elements * block_size + d for boundary in boundaries for d in (-2, 0, 17)]
    slots = torch.tensor([0, *slots, blocks * block_size - 1])
    near = torch.cat([slots, slots[:-1] + 1, slots[1:] - 1])
    for x in (cache, expected):
        x[near // block_size, :, near % block_size] = 90
    call = flash_arguments(device, tokens=len(slots), heads=heads, head_size=size, format=format)
    call["slot_mapping"] = slots.to(device)
    call["key_cache"], call["value_cache"] = cache.unbind(1)
    run(FLASH, call)
    call["key_cache"], call["value_cache"] = expected.unbind(1)
    reference.reshape_and_cache_flash(**call)
    assert_equal_bits(
        cache[near // block_size, :, near % block_size], expected[near // block_size, :, near % block_size]
    )


def spread(x: torch.Tensor) -> torch.Tensor:
    """The same values, with more than LIMIT elements between the first and the last of the first dimension."""
    stride = LIMIT // (len(x) - 1) + 64
    memory = torch.empty(stride * (len(x) - 1) + x[0].numel(), dtype=x.dtype, device=x.device)
    inner = torch.empty(x.shape[1:], dtype=x.dtype, device="meta").stride()
    return memory.as_strided(x.shape, (stride, *inner)).copy_(x)


def with_tensor(call: Arguments, name: str, x: torch.Tensor) -> Arguments:
    """The call with another tensor; items of lists are named as by tensors_of."""
    argument, _, index = name.removesuffix("]").partition("[")
    if not index:
        return call | {name: x}
    return call | {argument: [x if i == int(index) else item for i, item in enumerate(call[argument])]}


# All that do something and whose tensors need not be contiguous; NaNs would be free, in some.
SPREAD = [
    name
    for name, call in CALLS.items()
    if not call.op.startswith("swap_blocks")
    and (not call.nan_outputs or call.options.get("exact"))
    and not name.endswith(("no_tokens", "no_sequences", "nothing"))
]


@pytest.mark.parametrize("name", SPREAD)
def test_each_tensor_past_the_limit(device, name):
    """One tensor of the call at a time, of inputs, outputs and index tables, is spread."""
    op, good = CALLS[name].op, CALLS[name].arguments(device)
    expected = copy_of(good)
    getattr(reference, op)(**expected)
    tensors, wanted = tensors_of(good), tensors_of(expected)
    for far, original in tensors.items():
        is_later_item = far.endswith("]") and not far.endswith("[0]")
        if is_later_item or original.dim() < 2 or len(original) < 2 or original.is_pinned():
            continue
        call = copy_of(good, None)
        spread_out = spread(tensors_of(call)[far])
        for same in [x for x, tensor in tensors.items() if tensor is original]:
            call = with_tensor(call, same, spread_out)
        run(op, call)
        assert_equal_bits(spread_out, wanted[far])
        # Slices of the tensor that was spread are left out with it.
        address = original.untyped_storage().data_ptr()
        others = {x for x, tensor in tensors.items() if tensor.untyped_storage().data_ptr() != address}
        got = tensors_of(call)
        assert_same_bytes({x: got[x] for x in others}, {x: wanted[x] for x in others})


def test_caches_of_layers_past_the_limit(device):
    """The caches are given by address, far from each other, and their blocks are far apart."""
    layers, blocks, block_size, columns = 2, 3, 4, 40
    call = grouped_arguments(device, layers=layers, blocks=blocks, block_size=block_size, latent_size=32, rope_size=8)
    block_stride = LIMIT // 2 + 64
    memory = torch.empty(layers * blocks * block_stride, dtype=torch.bfloat16, device=device)
    caches = memory.as_strided((layers, blocks, block_size, columns), (blocks * block_stride, block_stride, columns, 1))
    caches.fill_(7)
    expected = torch.full(caches.shape, 7, dtype=caches.dtype)
    one = torch.ones(1)
    for layer, cache in enumerate(expected):
        kv_c, k_pe, slots = (call[name][layer].cpu() for name in ("kv_c", "k_pe", "slot_mapping"))
        reference.concat_and_cache_mla(kv_c, k_pe, cache, slots, "auto", one)
    addresses = torch.tensor([cache.data_ptr() for cache in caches], device=device)
    run("concat_and_cache_mla_grouped", call | {"kv_cache_ptrs": addresses, "block_stride": block_stride})
    assert_equal_bits(caches, expected)


def test_swapped_blocks_past_the_limit(device):
    block_bytes = 1000
    blocks = LIMIT // block_bytes + 5
    src, dst = (torch.empty(blocks * block_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    pairs = torch.tensor([(blocks - 1, 3), (2, blocks - 2), (3, blocks - 1), (blocks - 3, blocks - 4)])
    chosen = src.view(-1, block_bytes)
    chosen[pairs[:, 0]] = random_bytes(len(pairs) * block_bytes, device).view(-1, block_bytes)
    run("swap_blocks", {"src": src, "dst": dst, "block_size_in_bytes": block_bytes, "block_mapping": pairs})
    assert torch.equal(dst.view(-1, block_bytes)[pairs[:, 1]], chosen[pairs[:, 0]])


@pytest.mark.parametrize("blocks", [2**32 - 1, 2**32, 2**32 + 100])
def test_swapped_blocks_that_32_bits_number_just_so(device, blocks):
    """Blocks have one byte. Block 0 does not follow block 2^32 - 1."""
    src, dst = (torch.empty(blocks, dtype=torch.uint8, device=device) for _ in range(2))
    reads, writes = (blocks - 1 - torch.randperm(100) for _ in range(2))
    ends = torch.tensor([(min(blocks, 2**32) - 1, 7), (0, 8)])
    pairs = torch.cat([torch.stack([reads, writes], 1), ends])
    src[pairs[:, 0].to(device)] = random_bytes(len(pairs), device)
    run("swap_blocks", {"src": src, "dst": dst, "block_size_in_bytes": 1, "block_mapping": pairs})
    assert torch.equal(dst[pairs[:, 1].to(device)], src[pairs[:, 0].to(device)])


def test_gather_from_past_the_limit(device):
    entry, block_size = 656, 64
    blocks = LIMIT // (entry * block_size) + 100
    cache = torch.empty(blocks, block_size, entry, dtype=torch.uint8, device=device)
    used = torch.tensor(
        [0, *(limit // (entry * block_size) + d for limit in (LIMIT // 2, LIMIT) for d in (0, 1)), blocks - 1]
    )
    cache[used] = random_bytes(len(used) * block_size * entry, device).view(-1, block_size, entry)
    output = torch.zeros(len(used) * block_size, entry, dtype=torch.uint8, device=device)
    bounds = torch.tensor([0, len(output)], device=device)
    run(GATHER, {"src": cache, "dst": output, "table": used[None].to(device), "bounds": bounds, "batch_size": 1})
    assert_equal_bits(output, cache[used].flatten(0, 1))


def test_gather_to_past_the_limit(device):
    """The middle one of three sequences lies past its table, so that nearly all rows are never written."""
    entry, block_size, columns = 656, 16, 3
    middle, rows = LIMIT // entry, LIMIT // entry + 5000
    cache = random_bytes(9 * block_size * entry, device).view(9, block_size, entry)
    output = torch.empty(rows, entry, dtype=torch.uint8, device=device)
    table = torch.randint(9, (3, columns), device=device)
    bounds = torch.tensor([middle - 20, middle + 20, rows - 30, rows], device=device)
    starts = torch.tensor([3, columns * block_size, 5], device=device)
    windows = [slice(0, 10), slice(middle - 30, middle + 30), slice(rows - 50, rows)]
    for window in windows:
        output[window] = 90
    expected = [output[window].clone() for window in windows]
    entries = cache[table.long()].flatten(1, 2)
    expected[1][10:-10] = entries[0, 3 : 3 + 40]
    expected[2][20:] = entries[2, 5 : 5 + 30]
    run(GATHER, {"s": cache, "d": output, "t": table, "b": bounds, "batch_size": 3, "starts": starts})
    for window, wanted in zip(windows, expected, strict=True):
        assert_equal_bits(output[window], wanted)


# -- all of it used, where there is room -------------------------------------------------------------------------------


def test_writing_more_than_the_limit(gpu):
    heads, size, block_size = 8, 128, 16
    tokens = LIMIT // (heads * size) + 1000
    blocks = tokens // block_size + 1
    key = torch.randint(-(2**15), 2**15, (tokens, heads, size), dtype=torch.int16, device=gpu).view(torch.bfloat16)
    value = key.flip(1)[..., :8].contiguous()
    slots = distinct_slots(tokens, blocks * block_size).to(gpu)
    caches = [torch.empty(blocks, block_size, heads, x.shape[2], dtype=x.dtype, device=gpu) for x in (key, value)]
    one = torch.ones(1, device=gpu)
    torch.ops.multikv.reshape_and_cache_flash(key, value, *caches, slots, "auto", one, one)
    for source, cache in zip((key, value), caches, strict=True):
        for some in torch.arange(tokens, device=gpu).split(2**19):
            assert torch.equal(cache.flatten(0, 1)[slots[some]].view(torch.int16), source[some].view(torch.int16))


def test_writing_more_than_the_limit_packed(gpu):
    heads, size, block_size, x = 8, 128, 16, 8
    tokens = LIMIT // (heads * size) + 1000
    blocks = tokens // block_size + 1
    key = torch.randint(-(2**15), 2**15, (tokens, heads, size), dtype=torch.int16, device=gpu).view(torch.bfloat16)
    slots = distinct_slots(tokens, blocks * block_size).to(gpu)
    key_cache = torch.empty(blocks, heads, size // x, block_size, x, dtype=key.dtype, device=gpu)
    value_cache = torch.empty(blocks, heads, size, block_size, dtype=key.dtype, device=gpu)
    one = torch.ones(1, device=gpu)
    torch.ops.multikv.reshape_and_cache(key, key, key_cache, value_cache, slots, "auto", one, one)
    for some in torch.arange(tokens, device=gpu).split(2**17):
        block, offset = slots[some] // block_size, slots[some] % block_size
        for written in (key_cache[block, :, :, offset].flatten(2), value_cache[block, :, :, offset]):
            assert torch.equal(written.view(torch.int16), key[some].view(torch.int16))


@pytest.mark.parametrize("to_fp8", [True, False], ids=["to_fp8", "from_fp8"])
def test_converting_more_than_the_limit(gpu, to_fp8):
    columns = 2**16 + 1
    rows = LIMIT // columns + 100
    row = convert_arguments(gpu, to_fp8=to_fp8, shape=(columns,))
    dst = torch.empty(rows, columns, dtype=row["dst_cache"].dtype, device=gpu)
    run("convert_fp8", row | {"src_cache": row["src_cache"].repeat(rows, 1), "dst_cache": dst})
    reference.convert_fp8(**row)
    for some in dst.split(2000):
        assert_equal_bits(some, row["dst_cache"].expand(len(some), columns))


def test_converting_more_than_32_bits_count(gpu):
    """After each row comes a gap, so that the row of an element is a quotient of 33 bits."""
    columns, gap = 2**16 + 1, 1
    rows = 2 * LIMIT // columns + 100
    row = convert_arguments(gpu, shape=(columns,))
    dst = torch.zeros(rows, columns + gap, dtype=torch.uint8, device=gpu)
    run("convert_fp8", row | {"src_cache": row["src_cache"].expand(rows, columns), "dst_cache": dst[:, :columns]})
    reference.convert_fp8(**row)
    for some in dst.split(2000):
        assert_equal_bits(some[:, :columns], row["dst_cache"].expand(len(some), columns))
        assert not some[:, columns:].any()


def test_swapping_more_than_the_limit_at_once(gpu):
    """All blocks but one are copied in order, as one run."""
    block_bytes = 2**20 + 3
    blocks = 2 * LIMIT // block_bytes + 10
    src = torch.randint(256, (blocks, block_bytes), dtype=torch.uint8, device=gpu)
    dst = torch.zeros_like(src)
    pairs = torch.stack([torch.arange(1, blocks), torch.arange(blocks - 1)], 1)
    run("swap_blocks", {"src": src, "dst": dst, "block_size_in_bytes": block_bytes, "block_mapping": pairs})
    assert torch.equal(dst[:-1], src[1:]) and not dst[-1].any()


def test_more_heads_than_a_grid_has_blocks(gpu):
    heads, size = 70_000, 2048
    key = torch.randint(-(2**15), 2**15, (1, heads, size), dtype=torch.int16, device=gpu).view(torch.bfloat16)
    value, one, slot = key[..., :8].contiguous(), torch.ones(1, device=gpu), torch.tensor([1], device=gpu)
    caches = [torch.zeros(1, 2, heads, x.shape[2], dtype=x.dtype, device=gpu) for x in (key, value)]
    torch.ops.multikv.reshape_and_cache_flash(key, value, *caches, slot, "auto", one, one)
    rows = torch.zeros(heads, 2, size, dtype=key.dtype, device=gpu).transpose(0, 1)  # heads apart: a row each
    table, bounds = torch.zeros(1, 1, dtype=torch.int32, device=gpu), torch.tensor([0, 2], device=gpu)
    torch.ops.multikv.cp_gather_cache(caches[0], rows, table, bounds, 1)
    for written, source in zip((*caches, rows[None]), (key, value, key), strict=True):
        assert not written[0, 0].any()
        assert torch.equal(written[0, 1].view(torch.int16), source[0].view(torch.int16))


def test_gathering_more_than_the_limit(gpu):
    entry, block_size, blocks = 656, 64, 1000
    rows = LIMIT // entry + 100_000
    cache = torch.randint(256, (blocks, block_size, entry), dtype=torch.uint8, device=gpu)
    output = torch.empty(rows, entry, dtype=torch.uint8, device=gpu)
    lengths = [rows // 2, 1, rows - rows // 2 - 1]
    columns = rows // block_size + 1
    table = torch.randint(blocks, (3, columns), dtype=torch.int32, device=gpu)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], device=gpu)
    torch.ops.multikv.cp_gather_cache(cache, output, table, bounds, 3)
    for sequence, length in enumerate(lengths):
        for positions in torch.arange(length, device=gpu).split(2**20):
            wanted = cache[table[sequence, positions // block_size].long(), positions % block_size]
            assert torch.equal(output[bounds[sequence] + positions], wanted)


@pytest.mark.parametrize("overlap", [False, True], ids=["", "overlap"])
@pytest.mark.parametrize("rows", [1, 5])
def test_moving_tokens_past_the_limit(gpu, rows, overlap):
    """Tokens of more single bytes than a launch copies, or of fewer with overlap."""
    columns = (LIMIT // 16 if overlap else LIMIT) // rows + 1001
    src = torch.empty(3, 1, rows, columns + 1, dtype=torch.uint8, device=gpu)[..., :columns]
    src.random_(256)
    dst = torch.zeros(2, 1, rows, columns + 1, dtype=torch.uint8, device=gpu)
    slots = torch.tensor([2, 0], device=gpu), torch.tensor([0, 1], device=gpu)
    torch.ops.multikv.move_tokens([src], [dst[..., :columns]], *slots, overlap)
    assert torch.equal(dst[0, ..., :columns], src[2]) and torch.equal(dst[1, ..., :columns], src[0])
    assert not dst[..., columns:].any()


def test_packing_more_than_the_limit(gpu):
    """A block is copied as one unit, of more single bytes than a launch copies."""
    cache = torch.empty(2, 5, 1, LIMIT // 5 + 1001, dtype=torch.uint8, device=gpu).random_(256)
    staging = torch.zeros(1, 5, 1, 1, cache.size(3), dtype=torch.uint8, device=gpu)
    torch.ops.multikv.pack_layers([cache], torch.tensor([1], device=gpu), staging)
    assert torch.equal(staging[0, :, 0], cache[1])
    cache.zero_()
    torch.ops.multikv.unpack_layers(staging, [cache], torch.tensor([0], device=gpu))
    assert torch.equal(staging[0, :, 0], cache[0]) and not cache[1].any()
