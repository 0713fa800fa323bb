"""The reference of the ops that read sequences, and of the indexer's: examples worked out by hand."""

from __future__ import annotations

import math
import struct

import numpy
import pytest
import torch

from multikv import reference

TABLE = torch.tensor([[3, 1, 9], [0, 9, 9]])  # 9 is no block
BOUNDS, STARTS = torch.tensor([1, 4, 5]), torch.tensor([0, 1])
NOBODY = torch.full((9,), 77)  # token_to_seq


def dequant(cache, output, num_tokens, format, *, bounds=BOUNDS, starts=STARTS, **options):
    scale = torch.tensor(0.5)
    call = (cache, output, TABLE, bounds, NOBODY, num_tokens, format, scale, starts)
    reference.gather_and_maybe_dequant_cache(*call, **options)
    return output.flatten().tolist()


@pytest.mark.parametrize("num_tokens", [5, 6])
def test_dequant_by_hand(num_tokens):
    values = torch.arange(8.0).reshape(4, 2, 1)  # block b holds 2b and 2b + 1
    assert dequant(values, torch.full((6, 1), -1.0), num_tokens, "auto") == [-1, 6, 7, 2, 1, -1]
    for format in ("e4m3fn", "e4m3fnuz", "e5m2"):
        codes = reference.encode_fp8(values, format)
        output = torch.full((6, 1), -1.0, dtype=torch.bfloat16)
        assert dequant(codes, output, num_tokens, f"fp8_{format}") == [-1, 3, 3.5, 1, 0.5, -1]
    codes = reference.encode_fp8(values, "e4m3fnuz")
    assert dequant(codes, output, num_tokens, "fp8", e4m3_of_bytes="e4m3fnuz") == [-1, 3, 3.5, 1, 0.5, -1]


@pytest.mark.parametrize("num_tokens, expected", [(0, [-1, -1]), (1, [-1, -1]), (2, [-1, 6])])
def test_dequant_truncates_by_hand(num_tokens, expected):
    """With a smaller num_tokens neither bounds past the output nor bad blocks of later rows are errors."""
    cache = torch.arange(8).reshape(4, 2, 1)
    output = torch.full((2, 1), -1)
    assert dequant(cache, output, num_tokens, "auto", bounds=torch.tensor([1, 7, 9])) == expected


def test_dequant_rounds_once():
    codes = torch.tensor([[[0x01, 0x78, 0xF8, 0x7F, 0x80]]], dtype=torch.uint8)
    output = torch.zeros(1, 5, dtype=torch.float16)
    call = (codes, output, torch.tensor([[0]]), torch.tensor([0, 1]), NOBODY, 1, "fp8_e4m3fn")
    reference.gather_and_maybe_dequant_cache(*call, torch.tensor([1.0 + 2.0**-11 + 2.0**-23]))
    # The factor is just above a tie between 1 and 1 + 2**-10.
    above = 1 + 2.0**-10
    assert output[0, :3].tolist() == [2.0**-9 * above, 256 * above, -256 * above]
    assert output[0, 3].isnan() and str(output[0, 4].item()) == "-0.0"


def entry(nope, scales, rope):
    codes = reference.encode_fp8(torch.tensor(nope).repeat_interleave(128), "e4m3fn").tolist()
    return list(bytes(codes) + struct.pack("<4f", *scales) + struct.pack("<64H", *[rope] * 64))


def upconverted(row):
    """The numbers that the four tiles hold, and the bits of the rest."""
    tiles, rope = row[:512].unflatten(0, (4, 128)), row[512:].view(torch.int16)
    assert (tiles == tiles[:, :1]).all() and (rope == rope[0]).all()
    return tiles[:, 0].tolist(), rope[0].item()


def test_upconvert_by_hand():
    entries = [entry([1.0, -2.0, 448.0, b], [b + 1.0, 0.5, 2.0, 2.0**-130], b) for b in range(8)]
    cache = torch.tensor(entries, dtype=torch.uint8).reshape(4, 2, 656)
    for bounds in (torch.tensor([1, 4]), torch.tensor([1, 4, -99])):
        output = torch.full((5, 576), -1.0, dtype=torch.bfloat16)
        reference.cp_gather_and_upconvert_fp8_kv_cache(cache, output, TABLE, bounds, 2, STARTS)
        assert (output[0] == -1).all()
        for row, slot in zip(output[1:], (6, 7, 2, 1), strict=True):
            assert upconverted(row) == ([slot + 1.0, -1, 896, slot * 2.0**-130], slot)
    with pytest.raises(IndexError, match=r"workspace_starts\[1\]"):
        reference.cp_gather_and_upconvert_fp8_kv_cache(cache, output, TABLE, torch.tensor([1, 6]), 2)


def upconvert_with_host(device_ids, host_ids, **options):
    """Which of the rows 0 and 1 on the device, and 10 and 11 on the host, became the rows of the output."""
    on_device, on_host = ([entry([0.0] * 4, [1.0] * 4, r) for r in rows] for rows in ((0, 1), (10, 11)))
    cache = torch.tensor(on_device, dtype=torch.uint8).reshape(1, 2, 656)
    host = torch.tensor(on_host, dtype=torch.uint8)
    output = torch.full((4, 576), -1.0, dtype=torch.bfloat16)
    output[:, 512:].view(torch.int16).fill_(-1)
    ids = torch.tensor(host_ids), torch.tensor(device_ids)
    table, bounds = torch.tensor([[2, 1]]), torch.tensor([0])
    reference.cp_gather_and_upconvert_fp8_kv_cache(cache, output, table, bounds, 1, None, host, *ids, **options)
    return output[:, 512].view(torch.int16).tolist()


def test_upconvert_host_rows_by_hand():
    # Rows 0 and 1 are not needed; the output takes 4, 5, 2, 3.
    assert upconvert_with_host([9, 9, 1, -1, -2, 0], [9, 9, 9, 1, 0, -1]) == [10, 0, 1, 11]
    assert upconvert_with_host([9, 9, -1, -1, -1, -1], [9, 9, 0, -1, -1, 1]) == [-1, 11, 10, -1]
    for device_ids, host_ids, name in (([9, 9, 2, 0, 0, 0], [0] * 6, "device"), ([9, 9, -1, 0, 0, 0], [2] * 6, "host")):
        with pytest.raises(IndexError, match=rf"{name}_row_ids\[2\]"):
            upconvert_with_host(device_ids, host_ids)
        assert upconvert_with_host(device_ids, host_ids, bad_indices="skip") == [0, 0, -1, 0]


def indexer_blocks(format, k, q, **options):
    """The bytes of two blocks of three tokens, after the rows of k went to the slots 4 and 1."""
    k = torch.tensor(k)
    cache = torch.full((2, 3, k.shape[1] * (q + 4) // q), 0xAA, dtype=torch.uint8)
    reference.indexer_k_quant_and_cache(k, cache, torch.tensor([4, 1]), q, format, **options)
    return cache.flatten(1)


@pytest.mark.parametrize("format, scale", [("auto", 900 / 448), ("fp32", 900 / 448), ("ue8m0", 4.0)])
def test_indexer_write_by_hand(format, scale):
    blocks = indexer_blocks(format, [[900.0, -450.0, 0.0, 224.0, 112.0, 448.0], [0.0] * 6], 3)
    expected = torch.full((2, 42), 0xAA, dtype=torch.uint8)
    quotients = torch.tensor([900.0, -450, 0]) / torch.tensor(scale)
    expected[1, 6:9] = reference.encode_fp8(quotients, "e4m3fn")
    expected[1, 9:12] = reference.encode_fp8(torch.tensor([224.0, 112, 448]), "e4m3fn")
    expected[1, 26:34] = torch.tensor(list(struct.pack("<2f", scale, 1)))
    expected[0, 6:12] = 0
    least = numpy.float32(1e-4) / numpy.float32(448)
    expected[0, 26:34] = torch.tensor(list(struct.pack("<f", 2.0**-22 if format == "ue8m0" else least) * 2))
    assert torch.equal(blocks, expected)


def test_indexer_write_of_exponent_bytes_by_hand():
    k = torch.zeros(2, 128)
    k[0, 5], k[1, 0] = 449, float("nan")
    blocks = indexer_blocks("mxfp8", k.tolist(), 128)
    assert blocks[1, 3 * 128 :].tolist() == [*[0xAA] * 4, *[128] * 4, *[0xAA] * 4]
    assert blocks[1, 128 + 5] == reference.encode_fp8(torch.tensor(224.5), "e4m3fn")
    assert blocks[0, 3 * 128 :].tolist() == [*[0xAA] * 4, *[105] * 4, *[0xAA] * 4]
    assert blocks[0, 128:130].tolist() == [0x7F, 0]


@pytest.mark.parametrize("format", ["fp8_e4m3fnuz", "ue8m0"])
def test_indexer_write_of_the_other_e4m3(format):
    k = [[224.0, 225.0], [float("nan"), float("inf")]]
    blocks = indexer_blocks(format, k, 1, e4m3_of_bytes="e4m3fnuz")
    rounded_up = format == "ue8m0"
    second = 2.0 if rounded_up else numpy.float32(225) / numpy.float32(224)
    assert blocks[1, 14:22].tolist() == list(struct.pack("<2f", 1.0, second))
    assert blocks[1, 2] == reference.encode_fp8(torch.tensor(224.0), "e4m3fnuz")
    assert blocks[0, 2:4].tolist() == [0x80, 0x7F]  # NaN, and infinity saturates
    largest = struct.unpack("<f", bytes(blocks[0, 18:22].tolist()))[0]
    assert largest == (2.0**121 if rounded_up else numpy.finfo(numpy.float32).max / numpy.float32(224))


def test_indexer_scale_is_a_division():
    amax = torch.rand(1000, 1) * 1000 + 1
    cache = torch.zeros(1, 1000, 5, dtype=torch.uint8)
    reference.indexer_k_quant_and_cache(amax, cache, torch.arange(1000), 1, "auto")
    scales = cache.flatten()[1000:].view(torch.float32).numpy()
    assert (scales == amax[:, 0].numpy() / numpy.float32(448)).all()
    assert (scales != amax[:, 0].numpy() * numpy.float32(1 / 448)).any()


def test_indexer_scale_is_rounded_up_to_a_power_of_two():
    exponents = torch.arange(-20, 100).float()
    amax = 448 * torch.exp2(exponents)
    for changed in (amax, amax.nextafter(torch.tensor(0.0)), amax.nextafter(torch.tensor(math.inf))):
        cache = torch.zeros(1, 120, 5, dtype=torch.uint8)
        reference.indexer_k_quant_and_cache(changed[:, None], cache, torch.arange(120), 1, "ue8m0")
        scales = cache.flatten()[600 - 480 :].view(torch.float32)
        quotients = torch.from_numpy(changed.numpy() / numpy.float32(448))
        assert ((scales >= quotients) & (scales < 2 * quotients)).all()
        assert (torch.frexp(scales).mantissa == 0.5).all()


@pytest.mark.parametrize("scale_dtype", [torch.uint8, torch.float32])
def test_indexer_gather_by_hand(scale_dtype):
    """Block b: codes 10 * b + (0, 1), (2, 3), then scales 100 + b and 200 + b."""
    blocks = [[10 * b + i for i in range(4)] + list(struct.pack("<2f", 100 + b, 200 + b)) for b in range(4)]
    cache = torch.tensor(blocks, dtype=torch.uint8).reshape(4, 2, 6)
    k = torch.full((6, 2), 0xAA, dtype=torch.uint8)
    scales = torch.full((6, 1), -1.0).view(scale_dtype)
    reference.cp_gather_indexer_k_quant_cache(cache, k, scales, TABLE, BOUNDS)
    assert k.tolist() == [[0xAA, 0xAA], [30, 31], [32, 33], [10, 11], [0, 1], [0xAA, 0xAA]]
    assert scales.view(torch.float32).flatten().tolist() == [-1, 103, 203, 101, 100, -1]


def test_bad_indices():
    cache = torch.zeros(1, 2, 5, dtype=torch.uint8)
    with pytest.raises(IndexError, match=r"slot_mapping\[1\]"):
        reference.indexer_k_quant_and_cache(torch.ones(2, 1), cache, torch.tensor([0, 2]), 1, "auto")
    assert not cache.any()
    reference.indexer_k_quant_and_cache(torch.ones(2, 1), cache, torch.tensor([0, 2]), 1, "auto", bad_indices="skip")
    assert cache[0, 0, 0] == 0x7E
    with pytest.raises(IndexError, match=r"block_table\[\(0, 0\)\]"):
        dequant(torch.zeros(3, 2, 1), torch.zeros(6, 1), 5, "auto")
    assert dequant(torch.ones(3, 2, 1), torch.zeros(6, 1), 5, "auto", bad_indices="skip") == [0, 0, 0, 1, 1, 0]
    for bounds, s in (([-1, 2, 3], 0), ([0, 2, 1], 2)):
        with pytest.raises(IndexError, match=rf"cu_seq_lens\[{s}\]"):
            dequant(torch.zeros(4, 2, 1), torch.zeros(6, 1), 5, "auto", bounds=torch.tensor(bounds))
    with pytest.raises(IndexError, match=r"seq_starts\[1\]"):
        dequant(torch.zeros(4, 2, 1), torch.zeros(6, 1), 5, "auto", starts=torch.tensor([0, -1]))
