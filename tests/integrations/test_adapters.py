"""Each adapter does what the function of the other project does, byte for byte; the expectations are plain PyTorch."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

import multikv
from multikv.integrations import adapters

HEADS, HEAD_SIZE, PAGE, NUM_PAGES, LAYERS = 3, 8, 4, 6, 2
SLOTS = PAGE * NUM_PAGES
ITEM = HEADS * HEAD_SIZE * 2  # bytes of one token in bfloat16
TO, FROM = [13, 2, 23, 0, -1], [5, 22, 7, 8, 1]


def pool(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(torch.bfloat16)


def pools(count: int, device: torch.device, *shape: int) -> list[Tensor]:
    return [pool(device, *shape) for _ in range(count)]


def indices(values, device):
    return torch.tensor(values, device=device)


def addresses(tensors: list[Tensor]) -> Tensor:
    return torch.tensor([x.data_ptr() for x in tensors], dtype=torch.uint64, device=tensors[0].device)


def assert_written(written: list[Tensor], expected: list[Tensor]) -> None:
    for got, wanted in zip(written, expected, strict=True):
        assert torch.equal(got.view(torch.int16), wanted.view(torch.int16))


def test_store_kvcache(any_device):
    """Of nano-vllm."""
    key, value = pool(any_device, 5, 2, HEADS, HEAD_SIZE).unbind(1)
    caches = pools(2, any_device, NUM_PAGES, PAGE, HEADS, HEAD_SIZE)
    expected = [x.clone() for x in caches]
    for row, slot in enumerate(TO):
        for cache, new in zip(expected, (key, value), strict=True):
            if slot != -1:
                cache[slot // PAGE, slot % PAGE] = new[row]
    adapters.store_kvcache(key, value, *caches, indices(TO, any_device).int())
    assert_written(caches, expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_store_cache(dtype, any_device):
    """Of mini-sglang."""
    k, v = pool(any_device, 4, 2, HEADS * HEAD_SIZE).unbind(1)
    caches = pools(2, any_device, SLOTS, HEADS, HEAD_SIZE)
    expected = [x.clone() for x in caches]
    for row, slot in enumerate(TO[:4]):
        for cache, new in zip(expected, (k, v), strict=True):
            cache[slot] = new[row].view(HEADS, HEAD_SIZE)
    adapters.store_cache(*caches, indices(TO[:4], any_device).to(dtype), k, v)
    assert_written(caches, expected)


def moved(src: list[Tensor], dst: list[Tensor]) -> list[Tensor]:
    """The pools dst after each token of FROM went to its slot of TO; a negative slot is skipped."""
    dst = [x.clone() for x in dst]
    for old, new in zip(FROM, TO, strict=True):
        for source, written in zip(src, dst, strict=True):
            if new >= 0:
                written[new] = source[old]
    return dst


def test_transfer_kv_per_layer(any_device):
    src, dst = (pools(2, any_device, SLOTS, HEADS, HEAD_SIZE) for _ in range(2))
    expected, lists = moved(src, dst), [indices(x, any_device) for x in (FROM, TO)]
    adapters.transfer_kv_per_layer(src[0], dst[0], src[1], dst[1], *lists, ITEM)
    assert_written(dst, expected)


def test_transfer_kv_per_layer_mla(any_device):
    src, dst = (pools(1, any_device, SLOTS, 1, 36) for _ in range(2))
    expected = moved(src, dst)
    adapters.transfer_kv_per_layer_mla(*src, *dst, *(indices(x, any_device) for x in (FROM, TO)), 72)
    assert_written(dst, expected)


def test_transfer_kv_per_layer_pf_lf(any_device):
    src, dst = pools(2, any_device, SLOTS, 3, HEADS, HEAD_SIZE), pools(2, any_device, SLOTS, HEADS, HEAD_SIZE)
    expected, lists = moved([x[:, 2] for x in src], dst), [indices(x, any_device) for x in (FROM, TO)]
    adapters.transfer_kv_per_layer_pf_lf(src[0], dst[0], src[1], dst[1], *lists, 2, ITEM, 3 * ITEM)
    assert_written(dst, expected)


def by_head(pages: Tensor) -> Tensor:
    """A copy [slots, layers, heads, head_size] of pages [num_pages, heads, page, layers, head_size]."""
    return pages.permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous()


def test_transfer_kv_per_layer_ph_lf(any_device):
    src = pools(2, any_device, NUM_PAGES, HEADS, PAGE, 3, HEAD_SIZE)
    dst = pools(2, any_device, SLOTS, HEADS, HEAD_SIZE)
    expected, lists = moved([by_head(x)[:, 1] for x in src], dst), [indices(x, any_device) for x in (FROM, TO)]
    adapters.transfer_kv_per_layer_ph_lf(src[0], dst[0], src[1], dst[1], *lists, 1, ITEM, 3 * ITEM, PAGE, HEADS)
    assert_written(dst, expected)


def all_layers(device):
    """Pools of K, then of V, of all layers, and the addresses of both."""
    tensors = pools(2 * LAYERS, device, SLOTS, HEADS, HEAD_SIZE)
    return tensors, addresses(tensors[:LAYERS]), addresses(tensors[LAYERS:])


def test_transfer_kv_all_layer(any_device):
    (src, src_k, src_v), (dst, dst_k, dst_v) = (all_layers(any_device) for _ in range(2))
    expected, lists = moved(src, dst), [indices(x, any_device) for x in (FROM, TO)]
    adapters.transfer_kv_all_layer(src_k, dst_k, src_v, dst_v, *lists, ITEM, LAYERS)
    assert_written(dst, expected)


def test_transfer_kv_all_layer_mla(any_device):
    src, dst = (pools(3, any_device, SLOTS, 36) for _ in range(2))
    expected = moved(src, dst)
    lists = [indices(x, any_device) for x in (FROM, TO)]
    adapters.transfer_kv_all_layer_mla(addresses(src), addresses(dst), *lists, 72, 3)
    assert_written(dst, expected)


def test_transfer_kv_all_layer_lf_pf(any_device):
    src, src_k, src_v = all_layers(any_device)
    dst = pools(2, any_device, SLOTS, LAYERS, HEADS, HEAD_SIZE)
    expected = moved([torch.stack(src[:LAYERS], 1), torch.stack(src[LAYERS:], 1)], dst)
    lists = [indices(x, any_device) for x in (FROM, TO)]
    adapters.transfer_kv_all_layer_lf_pf(src_k, dst[0], src_v, dst[1], *lists, ITEM, LAYERS * ITEM, LAYERS)
    assert_written(dst, expected)


def test_transfer_kv_all_layer_lf_ph(any_device):
    src, src_k, src_v = all_layers(any_device)
    dst = pools(2, any_device, NUM_PAGES, HEADS, PAGE, LAYERS, HEAD_SIZE)
    expected = moved([torch.stack(src[:LAYERS], 1), torch.stack(src[LAYERS:], 1)], [by_head(x) for x in dst])
    lists, sizes = [indices(x, any_device) for x in (FROM, TO)], (ITEM, LAYERS * ITEM, LAYERS, PAGE, HEADS)
    adapters.transfer_kv_all_layer_lf_ph(src_k, dst[0], src_v, dst[1], *lists, *sizes)
    assert_written([by_head(x) for x in dst], expected)


PAGES_FROM, PAGES_TO = [4, 1], [0, 5]


def page_lists(device):
    """Every token of the pages, as SGLang lists them."""
    return [
        indices([page * PAGE + t for page in pages for t in range(PAGE)], device) for pages in (PAGES_FROM, PAGES_TO)
    ]


def test_transfer_kv_direct(any_device):
    src, dst = (pools(2 * LAYERS, any_device, SLOTS, HEADS, HEAD_SIZE) for _ in range(2))
    expected = [x.clone() for x in dst]
    for old, new in zip(PAGES_FROM, PAGES_TO, strict=True):
        for source, written in zip(src, expected, strict=True):
            written[new * PAGE : (new + 1) * PAGE] = source[old * PAGE : (old + 1) * PAGE]
    adapters.transfer_kv_direct(src, dst, *page_lists(any_device), PAGE)
    assert_written(dst, expected)


@pytest.mark.parametrize("num_pools", [1, 2], ids=["mla", "k_and_v"])
def test_transfer_kv_per_layer_direct_pf_lf(num_pools, any_device):
    src = pools(num_pools, any_device, NUM_PAGES, 3, PAGE, HEADS, HEAD_SIZE)
    dst = pools(num_pools, any_device, SLOTS, HEADS, HEAD_SIZE)
    expected = [x.clone() for x in dst]
    for old, new in zip(PAGES_FROM, PAGES_TO, strict=True):
        for source, written in zip(src, expected, strict=True):
            written[new * PAGE : (new + 1) * PAGE] = source[old, 2]
    adapters.transfer_kv_per_layer_direct_pf_lf(src, dst, *page_lists(any_device), 2, PAGE)
    assert_written(dst, expected)


@pytest.mark.parametrize("num_pools", [1, 2], ids=["mla", "k_and_v"])
def test_transfer_kv_all_layer_direct_lf_pf(num_pools, any_device):
    src = pools(num_pools * LAYERS, any_device, SLOTS, HEADS, HEAD_SIZE)
    dst = pools(num_pools, any_device, NUM_PAGES, LAYERS, PAGE, HEADS, HEAD_SIZE)
    expected = [x.clone() for x in dst]
    for old, new in zip(PAGES_FROM, PAGES_TO, strict=True):
        for i, source in enumerate(src):
            expected[i // LAYERS][new, i % LAYERS] = source[old * PAGE : (old + 1) * PAGE]
    adapters.transfer_kv_all_layer_direct_lf_pf(src, dst, *page_lists(any_device), PAGE)
    assert_written(dst, expected)


@pytest.mark.parametrize("use_mla", [False, True])
@pytest.mark.parametrize("to_chunk", [False, True])
def test_multi_layer_kv_transfer(to_chunk, use_mla, any_device):
    """Of LMCache, whose chunk may be in host memory."""
    planes, size = (1 if use_mla else 2), HEADS * HEAD_SIZE
    layers = pools(LAYERS, any_device, planes, SLOTS, size)
    host = multikv.empty_pinned((planes, LAYERS, len(TO), size), torch.bfloat16)
    chunk = host.copy_(torch.randn(host.shape))
    wanted_layers, wanted_chunk = [x.clone() for x in layers], chunk.clone()
    for plane in range(planes):
        for i, layer in enumerate(wanted_layers):
            for token, slot in enumerate(TO):
                if slot >= 0 and to_chunk:
                    wanted_chunk[plane, i, token] = layer[plane, slot].cpu()
                elif slot >= 0:
                    layer[plane, slot] = chunk[plane, i, token].to(any_device)
    slots = indices(TO, any_device)
    adapters.multi_layer_kv_transfer(chunk, addresses(layers), slots, any_device, SLOTS, to_chunk, use_mla)
    if any_device.type == "cuda":
        torch.cuda.synchronize()
    assert_written([*layers, chunk], [*wanted_layers, wanted_chunk])


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
@pytest.mark.parametrize("with_values", [True, False])
@pytest.mark.parametrize("lengths", [([5, 1, 3], [5, 9, 11]), ([1, 1, 1], [4, 8, 1]), ([2, 0, 1], [2, 0, 6])], ids=str)
def test_fill_kv_cache(lengths, with_values, layout, any_device):
    """Of LMDeploy. The last row of the states belongs to no sequence."""
    query_lens, kv_lens = lengths
    starts = [sum(query_lens[:s]) for s in range(3)]
    states = pools(2, any_device, sum(query_lens) + 1, HEADS, HEAD_SIZE)
    shape = (20, PAGE, HEADS, HEAD_SIZE) if layout == "bshd" else (20, HEADS, PAGE, HEAD_SIZE)
    caches, table = pools(2, any_device, *shape), torch.randperm(20)[:9].view(3, 3).to(any_device, torch.int32)
    expected = [x.clone() for x in caches]
    for s in range(3):
        for i in range(query_lens[s]):
            position = kv_lens[s] - query_lens[s] + i
            block, offset = table[s, position // PAGE], position % PAGE
            for cache, state in zip(expected[: 1 + with_values], states, strict=False):
                (cache[block] if layout == "bshd" else cache[block].transpose(0, 1))[offset] = state[starts[s] + i]
    numbers = [indices(x, any_device) for x in (starts, query_lens, kv_lens)]
    values = (states[1], caches[1]) if with_values else (None, None)
    keys = states[0], caches[0]
    adapters.fill_kv_cache(keys[0], values[0], keys[1], values[1], *numbers, max(query_lens), table, kv_layout=layout)
    assert_written(caches, expected)


def test_fill_kv_cache_refuses_quantisation(any_device):
    x = pool(any_device, 1, 1, 1, 8)
    numbers = [indices([n], any_device) for n in (0, 1, 1)]
    with pytest.raises(RuntimeError, match=r"^fill_kv_cache: quant_policy: expected 0 \(none\), got 8$"):
        adapters.fill_kv_cache(x[0], x[0], x, x, *numbers, 1, indices([[0]], any_device), quant_policy=8)


@pytest.mark.parametrize("name", adapters.__all__)
def test_adapters_are_short(name):
    """A body has at most 20 lines."""
    function = getattr(adapters, name)
    lines = inspect.getsource(function).splitlines()
    body = lines[next(i for i, line in enumerate(lines) if line.endswith("-> None:")) + 1 :]
    assert len(body) <= 20
