"""The reference of the ops of multi-head latent attention, and of tiles: by hand, and rope by a second way as well."""

from __future__ import annotations

import math

import pytest
import torch

from multikv import reference
from multikv.reference.tiles import E4M3_DIVISOR, power_of_two_up, tile_amax
from tests.support.calls.mla import make_cos_sin_cache, rope_values
from tests.support.parameters import FLOATS, INDEX_DTYPES, short

ONE = torch.tensor(1.0)
LARGEST = torch.finfo(torch.float32).max


def decoded(cache):
    return reference.decode_fp8(cache.view(torch.uint8), "e4m3fn").flatten(0, 1).tolist()


# -- tiles -------------------------------------------------------------------------------------------------------------


def test_power_of_two_up():
    for exponent in range(-126, 127):
        power = torch.tensor(2.0**exponent)
        for x in (power, power.nextafter(ONE * math.inf), power * 1.5, (2 * power).nextafter(ONE * 0)):
            expected = 2.0**exponent if x == power else 2.0 ** (exponent + 1)
            assert power_of_two_up(x).item() == expected == 2.0 ** math.ceil(math.log2(x.double().item()))


def test_tile_amax():
    nan, inf = math.nan, math.inf
    tiles = torch.tensor([[1, -2], [0, -0.0], [nan, 3], [nan, -nan], [1, -inf], [inf, nan]])
    assert tile_amax(tiles).tolist() == [2, 0, 3, 0, LARGEST, LARGEST]
    assert tile_amax(torch.tensor([[-65504.0, 1]], dtype=torch.float16)).tolist() == [65504]


# -- concat_and_cache_mla ----------------------------------------------------------------------------------------------


def test_concat_and_cache_mla_by_hand():
    kv_c, k_pe = torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]]), torch.tensor([[10.0], [20], [30]])
    cache = torch.zeros(2, 2, 3)
    reference.concat_and_cache_mla(kv_c, k_pe, cache, torch.tensor([3, -1, 0]), "auto", ONE)
    assert cache.tolist() == [[[5, 6, 30], [0, 0, 0]], [[0, 0, 0], [1, 2, 10]]]


@pytest.mark.parametrize("skip_scale", [False, True])
def test_quantised_by_hand(skip_scale):
    kv_c, k_pe, cache = torch.tensor([[1.0, -2]]), torch.tensor([[1000.0]]), torch.zeros(1, 2, 3, dtype=torch.uint8)
    reference.concat_and_cache_mla(kv_c, k_pe, cache, torch.tensor([1]), "fp8", torch.tensor([2.0]), skip_scale)
    assert decoded(cache) == [[0, 0, 0], [1, -2, 448] if skip_scale else [0.5, -1, 448]]


@pytest.mark.parametrize("columns, dtype", [(656, torch.uint8), (328, torch.bfloat16), (164, torch.int32)], ids=short)
@pytest.mark.parametrize("rope_size", [64, 0])
def test_ds_mla_by_hand(columns, dtype, rope_size):
    kv_c, k_pe = torch.zeros(1, 512, dtype=torch.bfloat16), torch.randn(1, rope_size).bfloat16()
    kv_c[0, :4] = torch.tensor([448.0, -1, math.nan, 0.25])  # scale 1
    kv_c[0, 128:130] = torch.tensor([450.0, 2])  # scale 2
    kv_c[0, 256:258] = torch.tensor([math.inf, -1])  # scale: the power of two above 2^128 / 448
    kv_c[0, 384:386] = torch.tensor([1e-9, -0.0])  # scale: the power of two above 1e-4
    cache = torch.zeros(1, 2, columns, dtype=dtype)
    reference.concat_and_cache_mla(kv_c, k_pe, cache, torch.tensor([1]), "fp8_ds_mla", torch.tensor([math.nan]))
    assert not cache[0, 0].view(torch.uint8).any()
    codes, scales, rope = cache[0, 1].clone().view(torch.uint8).split([512, 16, 128])
    assert scales.view(torch.float32).tolist() == [1, 2, 2.0**120, 2.0**-13]
    tiles = reference.decode_fp8(codes, "e4m3fn").nan_to_num(nan=-7).reshape(4, 128)
    assert tiles[0, :5].tolist() == [448, -1, -7, 0.25, 0]
    assert tiles[1, :3].tolist() == [224, 1, 0]
    assert tiles[2, :3].tolist() == [448, 0, 0]
    assert codes[256:258].tolist() == [0x7E, 0x80] and codes[384:386].tolist() == [0, 0x80]
    assert torch.equal(rope, k_pe[0].view(torch.uint8) if rope_size else torch.zeros(128, dtype=torch.uint8))


def test_ds_mla_has_the_e4m3_of_its_cache():
    kv_c, k_pe = torch.full((1, 512), 224.0).half(), torch.zeros(1, 0).half()
    for dtype, of_bytes, format, scale in (
        (torch.uint8, "e4m3fn", "e4m3fn", 0.5),
        (torch.uint8, "e4m3fnuz", "e4m3fnuz", 1),
        (torch.float8_e4m3fn, "e4m3fnuz", "e4m3fn", 0.5),
        (torch.float8_e4m3fnuz, "e4m3fn", "e4m3fnuz", 1),
    ):
        cache = torch.zeros(1, 1, 656, dtype=torch.uint8).view(dtype)
        reference.concat_and_cache_mla(kv_c, k_pe, cache, torch.tensor([0]), "fp8_ds_mla", ONE, e4m3_of_bytes=of_bytes)
        entry = cache.view(torch.uint8).flatten()
        assert entry[512:528].clone().view(torch.float32).tolist() == [scale] * 4
        assert reference.decode_fp8(entry[:512], format).unique().item() == 224 / scale
        assert 224 / scale <= E4M3_DIVISOR[format]


def test_bad_slots():
    kv_c, k_pe, cache = torch.ones(3, 2), torch.ones(3, 1), torch.zeros(1, 2, 3)
    slots = torch.tensor([0, -5, 2])
    with pytest.raises(IndexError, match=r"slot_mapping\[2\] is 2"):
        reference.concat_and_cache_mla(kv_c, k_pe, cache, slots, "auto", ONE)
    assert not cache.any()
    reference.concat_and_cache_mla(kv_c, k_pe, cache, slots, "auto", ONE, bad_indices="skip")
    assert cache.tolist() == [[[1, 1, 1], [0, 0, 0]]]


# -- concat_and_cache_mla_rope_fused -----------------------------------------------------------------------------------


def rope(x, table, positions, is_neox):
    """A copy of x [T, heads, R] that the op has rotated as q_pe."""
    x, tokens, size = x.clone(), len(x), x.shape[2]
    k_pe, kv_c = torch.zeros(tokens, size, dtype=x.dtype), torch.zeros(tokens, 1, dtype=x.dtype)
    cache = torch.zeros(1, 1, 1 + size, dtype=x.dtype)
    slots = torch.full((tokens,), -1)
    reference.concat_and_cache_mla_rope_fused(positions, x, k_pe, kv_c, table, is_neox, slots, cache, "auto", ONE)
    return x


def rope_by_steps(x, table, positions, is_neox, *, products, sums, multiply_add):
    """Computes in float64, in which products are exact, and rounds where the arguments say."""

    def rounded(x, dtype):
        return x.to(dtype or torch.float64).double()

    half = x.shape[2] // 2
    result = x.clone()
    for t, position in enumerate(positions.tolist()):
        for i in range(half):
            a, b = (i, i + half) if is_neox else (2 * i, 2 * i + 1)
            cos, sin = table[position, i].double(), table[position, half + i].double()
            first, second = x[t, :, a].double(), x[t, :, b].double()
            minuend, addend = first * cos, second * cos
            if not multiply_add:
                minuend, addend = rounded(minuend, products), rounded(addend, products)
            difference = minuend - rounded(second * sin, products)
            total = addend + rounded(first * sin, products)
            result[t, :, a], result[t, :, b] = rounded(difference, sums).to(x), rounded(total, sums).to(x)
    return result


def rope_inputs(dtype, table_dtype):
    return rope_values((9, 5, 16), dtype), make_cos_sin_cache(50, 16, table_dtype), torch.randint(50, (9,))


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_rope_rounds_every_step_to_the_tables_dtype(dtype, is_neox):
    for table_dtype in {dtype, torch.float32}:
        arguments = (*rope_inputs(dtype, table_dtype), is_neox)
        got = rope(*arguments)
        every_step = {"products": table_dtype, "sums": table_dtype, "multiply_add": False}
        assert torch.equal(got, rope_by_steps(*arguments, **every_step))
        # None of what a kernel might do instead gives the same.
        if table_dtype != torch.float32:
            assert not torch.equal(
                got, rope_by_steps(*arguments, products=torch.float32, sums=torch.float32, multiply_add=False)
            )
        assert not torch.equal(got, rope_by_steps(*arguments, **every_step | {"multiply_add": True}))


def test_rope_by_hand():
    table = torch.tensor([[9.0, 9, 9, 9], [0, 1, 1, 0]])  # position 1: the first pair by a quarter turn
    x, positions = torch.tensor([[[1.0, 2, 3, 4]]]), torch.tensor([1])
    assert rope(x, table, positions, True).tolist() == [[[-3, 2, 1, 4]]]
    assert rope(x, table, positions, False).tolist() == [[[-2, 1, 3, 4]]]


@pytest.mark.parametrize("k_pe_shape", [(-1, 2), (-1, 1, 2)], ids=["TxR", "Tx1xR"])
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
def test_who_is_rotated_and_who_is_cached(index_dtype, k_pe_shape):
    table = torch.tensor([[-1.0, 0]]).expand(4, 2)  # every rotation is by half a turn
    # A slot, padding, bad slots and positions, and a surplus row.
    positions = torch.tensor([3, 3, 3, 4, -1, 77], dtype=index_dtype)
    slots = torch.tensor([1, -1, 2, 0, 0], dtype=index_dtype)

    def call(bad_indices, good=slice(None)):
        q_pe, k_pe, kv_c = torch.ones(6, 2, 2), torch.ones(6, 2).view(k_pe_shape), torch.full((6, 1), 5.0)
        cache = torch.zeros(1, 2, 3)
        tensors = positions[good], q_pe, k_pe, kv_c, table, True, slots[good], cache
        try:
            reference.concat_and_cache_mla_rope_fused(*tensors, "auto", ONE, bad_indices=bad_indices)
        except IndexError as error:
            assert torch.equal(q_pe, torch.ones(6, 2, 2)) and not cache.any()
            return str(error)
        assert torch.equal(q_pe[:, 0].reshape(k_pe_shape), k_pe) and torch.equal(q_pe[:, 0], q_pe[:, 1])
        return q_pe[:, 0, 0].tolist(), cache[0].tolist()

    assert call("skip") == ([-1, -1, -1, 1, 1, 1], [[0, 0, 0], [5, -1, -1]])
    assert call("raise", slice(0, 2)) == ([-1, -1, 1, 1, 1, 1], [[0, 0, 0], [5, -1, -1]])
    assert call("raise", slice(0, 3)) == "slot_mapping[2] is 2"
    assert call("raise", slice(3, 4)) == "positions[0] is 4"
    assert call("raise", slice(4, 5)) == "positions[0] is -1"


def test_rotated_key_is_quantised():
    table = torch.tensor([[0.0, 1]])
    q_pe, k_pe, kv_c = torch.zeros(1, 1, 2), torch.tensor([[2.0, 6]]), torch.tensor([[8.0]])
    cache = torch.zeros(1, 1, 3, dtype=torch.uint8)
    at = torch.tensor([0])
    reference.concat_and_cache_mla_rope_fused(at, q_pe, k_pe, kv_c, table, False, at, cache, "fp8", torch.tensor([4.0]))
    assert k_pe.tolist() == [[-6, 2]] and decoded(cache) == [[2, -1.5, 0.5]]


# -- concat_mla_q, concat_and_cache_mla_grouped ------------------------------------------------------------------------


def test_concat_mla_q_by_hand():
    out = torch.zeros(1, 3, 3)
    reference.concat_mla_q(torch.tensor([[[1.0, 2], [3, 4]]]), torch.tensor([[[5.0], [6]]]), out)
    assert out.tolist() == [[[1, 2, 5], [3, 4, 6], [0, 0, 0]]]


def grouped(caches, slots, **options):
    kv_c, k_pe = torch.tensor([[[1.0], [2]], [[3], [4]]]), torch.tensor([[[5.0], [6]], [[7], [8]]])
    addresses = torch.tensor([cache.data_ptr() for cache in caches])
    strides = caches[0].stride()[:2]
    reference.concat_and_cache_mla_grouped(kv_c, k_pe, addresses, torch.tensor(slots), 2, *strides, **options)


@pytest.mark.parametrize("num_blocks", [-1, 2])
def test_grouped_by_hand(num_blocks):
    caches = torch.zeros(2, 2, 3, 4)[:, :, :2, :2].unbind(0)  # padded blocks and slots
    grouped(caches, [[2, -1], [0, 3]], num_blocks=num_blocks)
    assert caches[0].tolist() == [[[0, 0], [0, 0]], [[1, 5], [0, 0]]]
    assert caches[1].tolist() == [[[3, 7], [0, 0]], [[0, 0], [4, 8]]]


def test_grouped_scales():
    caches = torch.zeros(2, 1, 2, 2, dtype=torch.uint8).unbind(0)
    grouped(caches, [[0, 1], [0, 1]], kv_scales=torch.tensor([2.0, 0.5]), kv_cache_dtype="fp8")
    assert decoded(caches[0]) == [[0.5, 2.5], [1, 3]] and decoded(caches[1]) == [[6, 14], [8, 16]]


def test_grouped_bad_slots():
    caches = torch.zeros(2, 1, 2, 2).unbind(0)
    with pytest.raises(IndexError, match=r"slot_mapping\[\(1, 0\)\] is 2"):
        grouped(caches, [[0, 1], [2, 0]], num_blocks=1)
    assert not any(cache.any() for cache in caches)
    grouped(caches, [[0, 1], [2, 0]], num_blocks=1, bad_indices="skip")
    assert caches[0].tolist() == [[[1, 5], [2, 6]]] and caches[1].tolist() == [[[4, 8], [0, 0]]]
    grouped(caches, [[0, 1], [2, 0]], num_blocks=0, bad_indices="skip")
