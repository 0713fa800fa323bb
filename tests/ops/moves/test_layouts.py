"""The layouts of docs/layouts.md: each call of a recipe against a plain PyTorch permutation of the same bytes.

`tokens` in these tests is what the caches of a model hold: [blocks, block_size, planes, heads, head_size], where the
planes are K0 V0 K1 V1 ... The recipe packs it into another project's buffer, which is compared with the permutation
that the layout's own description gives, and unpacks the buffer into empty caches.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import multikv
from tests.support.tensors import random_bytes

LAYERS, BLOCKS, B, H, D = 3, 11, 16, 4, 8
P = 2 * LAYERS
IDS = (7, 2, 9, 0)
N = len(IDS)
DTYPE = torch.bfloat16


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def random(*shape: int, device: torch.device | str = "cpu") -> Tensor:
    count = int(torch.tensor(shape).prod()) * DTYPE.itemsize
    return random_bytes(count, device).view(DTYPE).view(shape)


def make_caches(
    device: torch.device, *, block_size: int = B, heads: int = H, order: str = "NHD", blocks: int = BLOCKS
) -> list[Tensor]:
    """K0 V0 K1 V1 ..., each [blocks, block_size, heads, D] in the memory order NHD or HND."""
    if order == "NHD":
        return [random(blocks, block_size, heads, D, device=device) for _ in range(P)]
    return [random(blocks, heads, block_size, D, device=device).transpose(1, 2) for _ in range(P)]


def tokens_of(caches: list[Tensor], ids: tuple[int, ...] = IDS) -> Tensor:
    """[tokens, planes, heads, D]"""
    return torch.stack([cache[list(ids)].flatten(0, 1) for cache in caches], 1)


def ids_on(device: torch.device, ids: tuple[int, ...] = IDS) -> Tensor:
    return torch.tensor(ids, device=device)


def keys(caches: list[Tensor]) -> list[Tensor]:
    return caches[0::2]


def values(caches: list[Tensor]) -> list[Tensor]:
    return caches[1::2]


# Each recipe yields (planes, view of the buffer, head_start), one call each.
Calls = list[tuple[list[Tensor], Tensor, int]]


def layer_first(caches: list[Tensor], k: Tensor, v: Tensor) -> Calls:
    """SGLang's layer_first: K and V each [layers, tokens, H * D]."""
    return [
        (planes, buffer.view(LAYERS, N, B, H, D).permute(1, 2, 0, 3, 4), 0)
        for planes, buffer in ((keys(caches), k), (values(caches), v))
    ]


def page_first(caches: list[Tensor], k: Tensor, v: Tensor) -> Calls:
    """SGLang's page_first: K and V each [tokens, layers, H * D]."""
    return [(planes, buffer.view(N, B, LAYERS, H, D), 0) for planes, buffer in ((keys(caches), k), (values(caches), v))]


def page_unified(caches: list[Tensor], buffer: Tensor) -> Calls:
    """SGLang's page_unified: [pages, head groups, layers, 2, B, heads of a group, D], one call for each head group."""
    groups, g = buffer.shape[1], buffer.shape[5]
    return [(caches, buffer[:, k].view(N, P, B, g, D).permute(0, 2, 1, 3, 4), k * g) for k in range(groups)]


def lmcache_chunk(caches: list[Tensor], buffer: Tensor) -> Calls:
    """LMCache's chunk [2, layers, tokens, H * D], with the planes K0 K1 ... V0 V1 ..."""
    return [
        ([*keys(caches), *values(caches)], buffer.view(P, N, B, H, D).permute(1, 2, 0, 3, 4), 0),
    ]


def universal(caches: list[Tensor], buffer: Tensor) -> Calls:
    """Dynamo's universal block [blocks, H, layers, 2, B, D]."""
    return [(caches, buffer.view(N, H, P, B, D).permute(0, 3, 2, 1, 4), 0)]


LAYOUTS = {
    # name: recipe, and the buffers that plain PyTorch makes from [tokens, planes, H, D]
    "sglang_layer_first": (
        layer_first,
        lambda x: [x[:, side::2].transpose(0, 1).reshape(LAYERS, N * B, H * D) for side in range(2)],
    ),
    "sglang_page_first": (page_first, lambda x: [x[:, side::2].reshape(N * B, LAYERS, H * D) for side in range(2)]),
    "sglang_page_unified_1_head": (
        page_unified,
        lambda x: [x.view(N, B, LAYERS, 2, H, 1, D).permute(0, 4, 2, 3, 1, 5, 6)],
    ),
    "sglang_page_unified_2_heads": (
        page_unified,
        lambda x: [x.view(N, B, LAYERS, 2, H // 2, 2, D).permute(0, 4, 2, 3, 1, 5, 6)],
    ),
    "lmcache_chunk": (
        lmcache_chunk,
        lambda x: [x.view(N * B, LAYERS, 2, H * D).permute(2, 1, 0, 3)],
    ),
    "dynamo_universal": (universal, lambda x: [x.view(N, B, LAYERS, 2, H, D).permute(0, 4, 2, 3, 1, 5)]),
}


@pytest.mark.parametrize("order", ["NHD", "HND"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_other_projects(device, name, order):
    recipe, permuted = LAYOUTS[name]
    caches = make_caches(device, order=order)
    expected = [x.contiguous() for x in permuted(tokens_of(caches))]
    buffers = [torch.zeros_like(x) for x in expected]
    for planes, view, head_start in recipe(caches, *buffers):
        multikv.pack_layers(planes, ids_on(device), view, head_start=head_start)
    for buffer, wanted in zip(buffers, expected, strict=True):
        assert same(buffer, wanted)

    restored = make_caches(device, order=order)
    wanted_caches = [x.clone() for x in restored]
    for cache, source in zip(wanted_caches, caches, strict=True):
        cache[list(IDS)] = source[list(IDS)]
    for planes, view, head_start in recipe(restored, *buffers):
        multikv.unpack_layers(view, planes, ids_on(device), head_start=head_start)
    for cache, wanted in zip(restored, wanted_caches, strict=True):
        assert same(cache, wanted)


def test_part_of_a_chunk(device):
    """LMCache's last chunk of a sequence: fewer tokens than the chunk has rows for."""
    caches = make_caches(device)
    buffer = torch.zeros(2, LAYERS, N * B, H * D, dtype=DTYPE, device=device)
    planes, view, _ = lmcache_chunk(caches, buffer)[0]
    multikv.pack_layers(planes, ids_on(device), view, num_tokens=3 * B + 5)
    wanted = LAYOUTS["lmcache_chunk"][1](tokens_of(caches))[0].contiguous()
    wanted[:, :, 3 * B + 5 :] = 0
    assert same(buffer, wanted)


@pytest.mark.parametrize("orders", [("NHD", "NHD"), ("NHD", "HND"), ("HND", "NHD"), ("HND", "HND")], ids="-".join)
@pytest.mark.parametrize("block_sizes", [(16, 64), (64, 16), (16, 16), (16, 24)], ids=lambda x: f"{x[0]}to{x[1]}")
def test_block_size_and_order(device, block_sizes, orders):
    """From caches of one block size and order to those of another, by a dense staging tensor."""
    from_size, to_size = block_sizes
    sources = make_caches(device, block_size=from_size, order=orders[0])
    targets = make_caches(device, block_size=to_size, order=orders[1], blocks=40)
    tokens = len(IDS) * from_size
    new_ids = tuple(torch.randperm(40)[: -(-tokens // to_size)].tolist())
    staging = torch.empty(tokens, 1, P, H, D, dtype=DTYPE, device=device)
    multikv.pack_layers(sources, ids_on(device), staging)
    multikv.unpack_layers(staging, targets, ids_on(device, new_ids), num_tokens=tokens)
    assert same(tokens_of(targets, new_ids)[:tokens], tokens_of(sources))


@pytest.mark.parametrize("order", ["NHD", "HND"])
def test_the_blocks_of_other_caches_without_a_second_step(device, order):
    """A view of staging that is the other side's blocks: of 64 tokens, HND. So one call changes size and order."""
    caches = make_caches(device, order=order)
    blocks = torch.empty(N * B // 64, P, H, 64, D, dtype=DTYPE, device=device)
    multikv.pack_layers(caches, ids_on(device), blocks.permute(0, 3, 1, 2, 4))
    assert same(blocks, tokens_of(caches).view(-1, 64, P, H, D).permute(0, 2, 3, 1, 4))


def rank_caches(full: Tensor, rank: int, ranks: int, kv_heads: int, device: torch.device) -> list[Tensor]:
    """The caches of a rank: its share of the heads, or one head that several ranks hold, if ranks > kv_heads."""
    share = max(1, kv_heads // ranks)
    first = rank * kv_heads // ranks
    return [x.to(device) for x in full[..., first : first + share, :].unbind(2)]


@pytest.mark.parametrize("ranks", [(2, 4), (4, 2), (1, 4), (4, 1), (2, 2)], ids=lambda x: f"{x[0]}to{x[1]}")
@pytest.mark.parametrize("kv_heads", [8, 4, 2, 1])
def test_other_number_of_ranks(device, ranks, kv_heads):
    """One pack for each pair of ranks that share heads. With fewer heads than ranks, several ranks hold a head.

    A destination takes each of its heads from the first source rank that holds the head.
    """
    before, after = ranks
    full = random(BLOCKS, B, P, kv_heads, D)
    sources = [rank_caches(full, r, before, kv_heads, device) for r in range(before)]
    wanted = [rank_caches(full, r, after, kv_heads, device) for r in range(after)]
    targets = [[torch.zeros_like(x) for x in planes] for planes in wanted]
    src_share, dst_share = (max(1, kv_heads // count) for count in ranks)
    for dst in range(after):
        dst_first = dst * kv_heads // after
        done = dst_first
        for src in range(before):
            src_first = src * kv_heads // before
            end = min(src_first + src_share, dst_first + dst_share)
            if not src_first <= done < end:
                continue
            staging = torch.empty(N, B, P, end - done, D, dtype=DTYPE, device=device)
            multikv.pack_layers(sources[src], ids_on(device), staging, head_start=done - src_first)
            multikv.unpack_layers(staging, targets[dst], ids_on(device), head_start=done - dst_first)
            done = end
        assert done == dst_first + dst_share
    for planes, expected in zip(targets, wanted, strict=True):
        for cache, x in zip(planes, expected, strict=True):
            assert same(cache[list(IDS)], x[list(IDS)])


# -- layouts that existing ops serve ----------------------------------------------------------------------------------


def test_separate_scales_move_in_a_second_call(device):
    """Scales [blocks, B, heads], float32: planes of head size 1."""
    scales = [torch.rand(BLOCKS, B, H, device=device) for _ in range(P)]
    staging = torch.empty(N, B, P, H, 1, device=device)
    multikv.pack_layers([x.unsqueeze(-1) for x in scales], ids_on(device), staging)
    assert same(staging[..., 0].flatten(0, 1), torch.stack([x[list(IDS)].flatten(0, 1) for x in scales], 1))


@pytest.mark.parametrize("v_size", [8, 12])
def test_k_and_v_of_different_sizes_in_one_row(device, v_size):
    """A row [K of D, V of D'] for each token and head: two calls, with views of the two parts of the row."""
    key_caches = [random(BLOCKS, B, H, D, device=device) for _ in range(LAYERS)]
    value_caches = [random(BLOCKS, B, H, v_size, device=device) for _ in range(LAYERS)]
    rows = torch.zeros(N, LAYERS, B, H, D + v_size, dtype=DTYPE, device=device)
    by_token = rows.transpose(1, 2)
    multikv.pack_layers(key_caches, ids_on(device), by_token[..., :D])
    multikv.pack_layers(value_caches, ids_on(device), by_token[..., D:])
    both = [torch.cat([k, v], -1)[list(IDS)] for k, v in zip(key_caches, value_caches, strict=True)]
    assert same(rows, torch.stack(both, 1))


def test_writes_k_and_v_of_different_sizes_in_one_row(device):
    """The same row as a cache [blocks, B, H, D + D']: reshape_and_cache_flash writes into two views of it."""
    cache = torch.zeros(BLOCKS, B, H, D + 12, dtype=DTYPE, device=device)
    key, value = random(20, H, D, device=device), random(20, H, 12, device=device)
    slots = torch.randperm(BLOCKS * B, device=device)[:20]
    one = torch.ones(1, device=device)
    multikv.reshape_and_cache_flash(key, value, cache[..., :D], cache[..., D:], slots, "auto", one, one)
    assert same(cache.flatten(0, 1)[slots], torch.cat([key, value], -1))


def vec_caches(device: torch.device) -> list[Tensor]:
    """VLLM's CPU layout `vec`: keys [blocks, H, D, B], values [blocks, H, B, D]."""
    return [random(BLOCKS, H, *sizes, device=device) for sizes in ((D, B), (B, D))]


def test_writes_vec_caches(device):
    """reshape_and_cache with vectors of one element: keys [blocks, H, D, B, 1], interleaved values likewise."""
    key_cache, value_cache = vec_caches(device)
    expected_keys, expected_values = key_cache.clone(), value_cache.clone()
    key, value = random(40, H, D, device=device), random(40, H, D, device=device)
    slots = torch.randperm(BLOCKS * B, device=device)[:40]
    expected_keys[slots // B, :, :, slots % B] = key
    expected_values[slots // B, :, slots % B] = value
    one = torch.ones(1, device=device)
    views = key_cache.unsqueeze(-1), value_cache.unsqueeze(-1)
    multikv.reshape_and_cache(key, value, *views, slots, "auto", one, one, interleaved_v=True)
    assert same(key_cache, expected_keys)
    assert same(value_cache, expected_values)


def test_packs_vec_caches(device):
    """Keys are planes [blocks, B, H * D, 1], in which an element is a head; values are planes in the order HND."""
    key_cache, value_cache = vec_caches(device)
    staging = torch.zeros(N, B, 2, H, D, dtype=DTYPE, device=device)
    by_element = staging[:, :, :1].flatten(3).unsqueeze(-1)  # [N, B, 1, H * D, 1], a view
    assert by_element.data_ptr() == staging.data_ptr()
    multikv.pack_layers([key_cache.flatten(1, 2).transpose(1, 2).unsqueeze(-1)], ids_on(device), by_element)
    multikv.pack_layers([value_cache.transpose(1, 2)], ids_on(device), staging[:, :, 1:])
    assert same(staging[:, :, 0], key_cache[list(IDS)].permute(0, 3, 1, 2))
    assert same(staging[:, :, 1], value_cache[list(IDS)].transpose(1, 2))


def test_blocks_of_vec_caches_move_whole(device):
    """A block of any layout is a slot of a pool without blocks."""
    for cache in vec_caches(device):
        target, expected = torch.zeros_like(cache), torch.zeros_like(cache)
        new_ids = torch.randperm(BLOCKS, device=device)[:N]
        multikv.move_tokens([cache.unsqueeze(1)], [target.unsqueeze(1)], ids_on(device), new_ids)
        expected[new_ids] = cache[list(IDS)]
        assert same(target, expected)


@pytest.mark.parametrize("dense", [True, False], ids=["one_tensor", "two_tensors"])
def test_split_mla_caches(device, dense):
    """An MLA cache in two tensors, latent [blocks, B, 512] and rotary key [blocks, B, 64], or two views of one.

    Two calls pack both into entries of one staging tensor: each part is a plane of one head.
    """
    latent_size, rope_size = 32, 8
    if dense:
        entries = [random(BLOCKS, B, latent_size + rope_size, device=device) for _ in range(LAYERS)]
        latents, ropes = [x[..., :latent_size] for x in entries], [x[..., latent_size:] for x in entries]
    else:
        latents = [random(BLOCKS, B, latent_size, device=device) for _ in range(LAYERS)]
        ropes = [random(BLOCKS, B, rope_size, device=device) for _ in range(LAYERS)]
    staging = torch.zeros(N, B, LAYERS, 1, latent_size + rope_size, dtype=DTYPE, device=device)
    for parts, view in ((latents, staging[..., :latent_size]), (ropes, staging[..., latent_size:])):
        multikv.pack_layers([x.unsqueeze(2) for x in parts], ids_on(device), view)
    rows = [torch.cat([a, b], -1)[list(IDS)] for a, b in zip(latents, ropes, strict=True)]
    assert same(staging[..., 0, :], torch.stack(rows, 2))


def test_writes_split_mla_caches(device):
    """reshape_and_cache_flash writes latent vectors and rotary keys as keys and values of one head."""
    latent_cache = torch.zeros(BLOCKS, B, 1, 32, dtype=DTYPE, device=device)
    rope_cache = torch.zeros(BLOCKS, B, 1, 8, dtype=DTYPE, device=device)
    latent, rope = random(20, 1, 32, device=device), random(20, 1, 8, device=device)
    slots = torch.randperm(BLOCKS * B, device=device)[:20]
    one = torch.ones(1, device=device)
    multikv.reshape_and_cache_flash(latent, rope, latent_cache, rope_cache, slots, "auto", one, one)
    assert same(latent_cache.flatten(0, 1)[slots], latent)
    assert same(rope_cache.flatten(0, 1)[slots], rope)
