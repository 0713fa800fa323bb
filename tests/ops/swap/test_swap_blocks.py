"""swap_blocks against its reference: the bytes of all tensors, with what surrounds them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multikv import reference
from tests.support.arguments import copy_of
from tests.support.calls.swap import PAIRS, directions, random_pairs, swap_arguments
from tests.support.comparison import check, run
from tests.support.parameters import FLOATS, short
from tests.support.tensors import embed, pinned, random_bytes

OP = "swap_blocks"


def check_all_directions(device, **options):
    for places in directions(device):
        check(OP, swap_arguments(device, **places, **options))


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(device, name):
    for dtype in (torch.bfloat16, torch.uint8):
        check_all_directions(device, pairs=PAIRS[name], dtype=dtype)


@pytest.mark.parametrize("block_shape", [(1,), (3,), (16,), (16, 33), (5, 8, 64), (100_001,)], ids=short)
def test_block_sizes(device, block_shape):
    for dtype in (torch.uint8, torch.bfloat16, torch.float32):
        check_all_directions(device, block_shape=block_shape, dtype=dtype)


@pytest.mark.parametrize(
    "dtype", [*FLOATS, torch.uint8, torch.int64, torch.float8_e4m3fn, torch.bool, torch.complex64], ids=short
)
def test_dtypes(device, dtype):
    check_all_directions(device, dtype=dtype)


@pytest.mark.parametrize("offset", [1, 3, 8])
def test_unaligned_starts(device, offset):
    """Offsets count bytes, so that neither starts nor sizes are aligned."""
    check_all_directions(device, dtype=torch.uint8, block_shape=(1001,), offset=offset)


def test_many_pairs(device):
    for pairs in (random_pairs(500, 600, 700), [(i, i) for i in range(600)]):
        check_all_directions(device, pairs=pairs, src_blocks=600, dst_blocks=700, block_shape=(40,))


def test_many_pairs_of_large_blocks(device):
    """The pairs are single, or in runs of five, which are sorted or not."""
    runs = [(5 * i + k, 5 * j + k) for i, j in random_pairs(8, 10, 10) for k in range(5)]
    for pairs in (random_pairs(40, 50, 50), runs, sorted(runs, key=lambda pair: pair[1])):
        check_all_directions(
            device, pairs=pairs, src_blocks=50, dst_blocks=50, block_shape=(30_001,), dtype=torch.uint8
        )


@pytest.mark.parametrize("length", [1, 2, 7, 40])
@pytest.mark.parametrize("blocks", [600, 1_200_000])
def test_runs_in_any_order(device, blocks, length):
    """The runs are whole but shuffled; one pair, or half of all pairs, may stand elsewhere in the mapping."""
    starts = torch.randperm(560 // length)[: 400 // length] * length
    runs = starts[:, None] + torch.arange(length)
    dst = runs[torch.randperm(len(runs))].flatten() + blocks - 600
    pairs = torch.stack([runs.flatten(), dst], 1)
    half = torch.randperm(len(pairs))[: len(pairs) // 2].sort().values
    rest = torch.ones(len(pairs), dtype=torch.bool).index_fill(0, half, False)
    for mapping in (pairs, torch.cat([pairs[1:], pairs[:1]]), torch.cat([pairs[half], pairs[rest]]), pairs.flip(0)):
        for places in directions(device):
            sizes = {"src_blocks": 600, "dst_blocks": blocks, "block_shape": (3,), "dtype": torch.uint8}
            check(OP, swap_arguments(device, **places, pairs=mapping.tolist(), **sizes))


@pytest.mark.parametrize("blocks", [300, 5000, 1_500_000])
def test_a_block_that_is_written_twice_is_found_among_many_pairs(any_device, blocks):
    """The source is other memory, so that a destination of two pairs is all that can be wrong."""
    src, dst = (torch.zeros(blocks, dtype=torch.uint8, device=any_device) for _ in "sd")
    good = torch.stack([torch.randperm(blocks)[:290], torch.randperm(blocks)[:290]], 1)
    run(OP, {"src": src, "dst": dst, "block_size_in_bytes": 1, "block_mapping": good})
    for _ in range(5):
        first, second = torch.randperm(290)[:2].sort().values.tolist()
        twice = good.clone()
        twice[first, 1] = good[second, 1]
        expected = rf"{OP}: block_mapping: .* block {good[second, 1]} \(pairs {first} and {second}\)$"
        with pytest.raises(RuntimeError, match=expected):
            run(OP, {"src": src, "dst": dst, "block_size_in_bytes": 1, "block_mapping": twice})


@pytest.mark.parametrize("blocks", [300, 5000, 5_000_000])
def test_what_is_wrong_is_found_among_many_pairs(any_device, blocks):
    """Overlaps are found whatever the numbers of the blocks and the order of the pairs."""
    memory = torch.zeros(blocks, dtype=torch.uint8, device=any_device)
    numbers = torch.randint(blocks, (blocks if blocks < 10_000 else 10_000,)).unique()
    numbers = numbers[torch.randperm(len(numbers))][: len(numbers) // 2 * 2]
    good = numbers.view(-1, 2)
    run(OP, {"src": memory, "dst": memory, "block_size_in_bytes": 1, "block_mapping": good})
    for _ in range(5):
        i, j = torch.randperm(len(good))[:2].tolist()
        twice, read = good.clone(), good.clone()
        twice[i, 1] = good[j, 1]
        read[i, 0] = good[j, 1]
        first, second = sorted((i, j))
        messages = (
            f"distinct destination blocks, got duplicate destination block {good[j, 1]} (pairs {first} and {second})",
            f"source blocks that do not overlap destination blocks, got block {good[j, 1]} of src (pair {i}) "
            f"overlapping block {good[j, 1]} of dst (pair {j})",
        )
        for mapping, message in zip((twice, read), messages, strict=True):
            with pytest.raises(RuntimeError) as caught:
                run(OP, {"src": memory, "dst": memory, "block_size_in_bytes": 1, "block_mapping": mapping})
            assert str(caught.value) == f"{OP}: block_mapping: expected {message}"


@pytest.mark.parametrize("pairs", [[(0, 0)], [(3, 1), (3, 2), (4, 0)], [(7, 6), (8, 5)], []], ids=str)
def test_within_one_tensor(device, pairs):
    """The copies within one tensor go to blocks that no pair reads."""
    for places in directions(device):
        if places["src"] == places["dst"]:
            check(OP, swap_arguments(device, **places, same_tensor=True, pairs=pairs))


def test_within_one_tensor_in_both_directions(device):
    call = swap_arguments(device, same_tensor=True, src_blocks=9, dst_blocks=0, pairs=())
    for pairs in ([(5, 0), (6, 1)], [(0, 5), (1, 6)], [(0, 8), (7, 1), (2, 4), (2, 3)], [(4, 5)], [(5, 4)]):
        check(OP, call | {"block_mapping": torch.tensor(pairs)})


def test_two_views_of_one_storage(device):
    """The blocks of each tensor are counted from its own start."""
    storage = random_bytes(1000, device)
    src, dst = storage[100:500].view(-1, 20), storage[403:903].view(-1, 20)  # they share 97 bytes
    for pairs in ([(0, 0), (3, 1)], [(14, 24)], [(0, 0), (19, 5), (18, 6)]):
        check(OP, {"src": src, "dst": dst, "block_size_in_bytes": 20, "block_mapping": torch.tensor(pairs)})


def test_blocks_are_bytes(device):
    """Blocks have any size and are counted from the start of the tensor; a remainder at its end is no block."""
    for places in directions(device):
        call = swap_arguments(device, **places, dtype=torch.float32, block_shape=(7,))  # 252 and 196 bytes
        for block_bytes in (1, 3, 5, 11, 27, 196):
            pairs = random_pairs(min(5, 196 // block_bytes), 252 // block_bytes, 196 // block_bytes)
            check(OP, call | {"block_size_in_bytes": block_bytes, "block_mapping": torch.tensor(pairs)})


def test_tensors_of_different_dtypes_and_shapes(device):
    """Tensors of two dtypes are copied as bytes."""
    src, dst = embed((3, 4, 5), torch.float32, device), embed((7, 2, 13), torch.uint8, device)  # 240 and 182 bytes
    pairs = torch.tensor([(5, 0), (2, 3), (4, 1)])
    for call in ({"src": src, "dst": dst}, {"src": dst, "dst": src}):
        check(OP, call | {"block_size_in_bytes": 30, "block_mapping": pairs})


def test_mapping_inside_another_tensor(device):
    call = swap_arguments(device)
    mapping = torch.full((20, 2), 10**12)  # neighbours that must not be read
    mapping[5:10] = call["block_mapping"]
    check(OP, call | {"block_mapping": mapping[5:10]})
    wide = torch.full((5, 7), 10**12)
    wide[:, 3:5] = call["block_mapping"]
    check(OP, call | {"block_mapping": wide[:, 3:5]})


def test_empty_tensors(device):
    none = torch.empty(0, 2, dtype=torch.int64)
    for shapes in (((0, 4), (3, 4)), ((3, 4), (0, 4)), ((0,), (0,))):
        src, dst = (embed(shape, torch.bfloat16, device) for shape in shapes)
        check(OP, {"src": src, "dst": dst, "block_size_in_bytes": 8, "block_mapping": none})


def test_host_to_host_beside_a_gpu(gpu):
    """The copy is complete when the call returns, whatever work is queued on the GPU."""
    for src in ("pinned", "pageable"):
        for dst in ("pinned", "pageable"):
            call = swap_arguments(gpu, src=src, dst=dst)
            torch.cuda._sleep(100_000_000)
            check(OP, call)
    torch.cuda.synchronize()


def test_tensors_that_views_of_pinned_memory_are(gpu):
    """A slice of a pinned tensor is as good as all of it, in either role."""
    host = pinned(embed((50, 100), torch.bfloat16))
    device = embed((20, 100), torch.bfloat16, gpu)
    pairs = torch.tensor([(0, 3), (7, 2), (4, 0)])
    for call in ({"src": host[30:40], "dst": device}, {"src": device[5:15], "dst": host[10:20]}):
        check(OP, call | {"block_size_in_bytes": 200, "block_mapping": pairs})


@pytest.mark.parametrize("src, dst", [("pinned", "device"), ("device", "pinned"), ("device", "device")])
def test_copies_from_and_to_pinned_memory_do_not_wait(gpu, src, dst):
    """The copies are queued in the stream: they come after earlier work, which may write src."""
    call = swap_arguments(gpu, src=src, dst=dst)
    run(OP, call)  # whatever is done the first time
    late = torch.full_like(call["src"], 7) if src == "device" else call["src"]
    expected = copy_of(call | {"src": late})
    reference.swap_blocks(**expected)
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    if src == "device":
        call["src"].copy_(late)
    run(OP, call)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()
    assert torch.equal(call["dst"].cpu().view(torch.int16), expected["dst"].view(torch.int16))


@st.composite
def calls(draw):
    """Two tensors, or one; pairs whose destinations no other pair reads or writes, some of them in runs."""
    block_bytes, same = draw(st.integers(1, 70)), draw(st.booleans())
    src_blocks, dst_blocks = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    targets = draw(st.lists(st.integers(0, dst_blocks - 1), unique=True, max_size=12))
    pairs = []
    for target in targets:
        follows = pairs and pairs[-1][0] + 1 < src_blocks and draw(st.booleans())
        pairs.append((pairs[-1][0] + 1 if follows else draw(st.integers(0, src_blocks - 1)), target))
    spare, offsets = draw(st.integers(0, block_bytes - 1)), draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))
    seed = draw(st.integers(0, 2**32))

    def build(device):
        torch.manual_seed(seed)
        sizes = [blocks * block_bytes + spare for blocks in (src_blocks, dst_blocks)]
        src, dst = (embed((size,), torch.uint8, device, offset=at) for size, at in zip(sizes, offsets, strict=True))
        mapping = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        if same:
            whole = (src_blocks + dst_blocks) * block_bytes + spare
            src = dst = embed((whole,), torch.uint8, device, offset=offsets[0])
            mapping[:, 1] += src_blocks
        return {"src": src, "dst": dst, "block_size_in_bytes": block_bytes, "block_mapping": mapping}

    return build


@given(build=calls())
def test_any_call(device, build):
    check(OP, build(device))
