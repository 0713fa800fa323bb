"""Calls of other projects as calls of multikv.

Each function has the name and the arguments of the function that it replaces.

SGLang and LMCache pass some caches by their addresses. A function with such an argument copies it to the host, which
waits for the GPU, and calls `swap_blocks_batch`. A caller that has the tensors calls `move_tokens` instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import multikv

__all__ = [
    "fill_kv_cache",
    "multi_layer_kv_transfer",
    "store_cache",
    "store_kvcache",
    "transfer_kv_all_layer",
    "transfer_kv_all_layer_direct_lf_pf",
    "transfer_kv_all_layer_lf_pf",
    "transfer_kv_all_layer_lf_ph",
    "transfer_kv_all_layer_mla",
    "transfer_kv_direct",
    "transfer_kv_per_layer",
    "transfer_kv_per_layer_direct_pf_lf",
    "transfer_kv_per_layer_mla",
    "transfer_kv_per_layer_pf_lf",
    "transfer_kv_per_layer_ph_lf",
]


def store_kvcache(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Replaces nano-vllm's function of this name. Negative slots are skipped.

    The caches are [num_blocks, block_size, num_heads, head_size].
    """
    multikv.reshape_and_cache_flash(key, value, k_cache, v_cache, slot_mapping, "auto", None, None)


def store_cache(k_cache: Tensor, v_cache: Tensor, indices: Tensor, k: Tensor, v: Tensor) -> None:
    """Replaces mini-sglang's function of this name.

    The caches are [num_slots, ...], and k and v are [num_tokens, elements of a slot].
    """
    k_cache, v_cache = (cache.view(len(cache), 1, 1, -1) for cache in (k_cache, v_cache))
    multikv.reshape_and_cache_flash(k.unsqueeze(1), v.unsqueeze(1), k_cache, v_cache, indices, "auto", None, None)


def transfer_kv_per_layer(
    src_k: Tensor,
    dst_k: Tensor,
    src_v: Tensor,
    dst_v: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    item_size: int,
    block_quota: int = 2,
    num_warps_per_block: int = 32,
) -> None:
    """Replaces SGLang's function of this name. The last two arguments are not used.

    The pools hold items of item_size bytes.
    """
    src, dst = ([_items(x, item_size) for x in pools] for pools in ((src_k, src_v), (dst_k, dst_v)))
    multikv.move_tokens(src, dst, src_indices, dst_indices)


def transfer_kv_per_layer_mla(
    src: Tensor,
    dst: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    item_size: int,
    block_quota: int = 2,
    num_warps_per_block: int = 32,
) -> None:
    """Replaces SGLang's function of this name: transfer_kv_per_layer with one pool on each side."""
    multikv.move_tokens([_items(src, item_size)], [_items(dst, item_size)], src_indices, dst_indices)


def transfer_kv_per_layer_pf_lf(
    src_k: Tensor,
    dst_k: Tensor,
    src_v: Tensor,
    dst_v: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    layer_id: int,
    item_size: int,
    src_layout_dim: int,
    block_quota: int = 2,
    num_warps_per_block: int = 32,
) -> None:
    """Replaces SGLang's function of this name.

    The source is page first: [num_slots, num_layers, item], with src_layout_dim bytes for each slot.
    """
    layer = slice(layer_id * item_size, (layer_id + 1) * item_size)
    src = [_items(x, src_layout_dim)[..., layer] for x in (src_k, src_v)]
    multikv.move_tokens(src, [_items(x, item_size) for x in (dst_k, dst_v)], src_indices, dst_indices)


def transfer_kv_per_layer_ph_lf(
    src_k: Tensor,
    dst_k: Tensor,
    src_v: Tensor,
    dst_v: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    layer_id: int,
    item_size: int,
    src_layout_dim: int,
    page_size: int,
    head_num: int,
    block_quota: int = 2,
    num_warps_per_block: int = 32,
) -> None:
    """Replaces SGLang's function of this name.

    The source is page head: [num_pages, head_num, page_size, num_layers, head].
    """
    sizes = (head_num, page_size, src_layout_dim // item_size, item_size // head_num)
    src = [_bytes(x).view(-1, *sizes)[:, :, :, layer_id].transpose(1, 2) for x in (src_k, src_v)]
    dst = [_items(x, item_size).unflatten(2, (head_num, -1)) for x in (dst_k, dst_v)]
    multikv.move_tokens(src, dst, src_indices, dst_indices)


def transfer_kv_all_layer(
    src_k_layers: Tensor,
    dst_k_layers: Tensor,
    src_v_layers: Tensor,
    dst_v_layers: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    item_size: int,
    num_layers: int,
    block_quota: int = 2,
    num_warps_per_block: int = 32,
) -> None:
    """Replaces SGLang's function of this name.

    The first four arguments list the addresses of the pools of all layers. The pools hold items of item_size bytes.
    """
    for src, dst in ((src_k_layers, dst_k_layers), (src_v_layers, dst_v_layers)):
        transfer_kv_all_layer_mla(src, dst, src_indices, dst_indices, item_size, num_layers)


def transfer_kv_all_layer_mla(
    src_layers: Tensor,
    dst_layers: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    item_size: int,
    num_layers: int,
    block_quota: int = 2,
    num_warps_per_block: int = 32,
) -> None:
    """Replaces SGLang's function of this name: transfer_kv_all_layer with one pool for each layer on each side."""
    src, dst = (
        layers.cpu().view(torch.int64)[:num_layers, None] + item_size * indices.cpu()
        for layers, indices in ((src_layers, src_indices), (dst_layers, dst_indices))
    )
    _copy_items(src, dst, item_size, (src_indices >= 0) & (dst_indices >= 0))


def transfer_kv_all_layer_lf_pf(
    src_k_layers: Tensor,
    dst_k: Tensor,
    src_v_layers: Tensor,
    dst_v: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    item_size: int,
    dst_layout_dim: int,
    num_layers: int,
    block_quota: int = 2,
    num_warps_per_block: int = 32,
) -> None:
    """Replaces SGLang's function of this name.

    The source is the addresses of layers. The target is page first, with dst_layout_dim bytes for each slot.
    """
    for layers, pool in ((src_k_layers, dst_k), (src_v_layers, dst_v)):
        src = layers.cpu().view(torch.int64)[:num_layers, None] + item_size * src_indices.cpu()
        dst = pool.data_ptr() + item_size * torch.arange(num_layers)[:, None] + dst_layout_dim * dst_indices.cpu()
        _copy_items(src, dst, item_size, (src_indices >= 0) & (dst_indices >= 0))


def transfer_kv_all_layer_lf_ph(
    src_k_layers: Tensor,
    dst_k: Tensor,
    src_v_layers: Tensor,
    dst_v: Tensor,
    src_indices: Tensor,
    dst_indices: Tensor,
    item_size: int,
    dst_layout_dim: int,
    num_layers: int,
    page_size: int,
    head_num: int,
    block_quota: int = 2,
    num_warps_per_block: int = 32,
) -> None:
    """Replaces SGLang's function of this name.

    The source is the addresses of layers. The target is page head, as the source of transfer_kv_per_layer_ph_lf.
    """
    head_bytes, heads = item_size // head_num, torch.arange(head_num)[:, None]
    slots = dst_indices.cpu()
    rows = (slots // page_size * head_num + heads) * page_size + slots % page_size
    dst = rows * (dst_layout_dim // head_num) + head_bytes * torch.arange(num_layers)[:, None, None]
    for table, pool in ((src_k_layers, dst_k), (src_v_layers, dst_v)):
        src = (
            table.cpu().view(torch.int64)[:num_layers, None, None] + item_size * src_indices.cpu() + head_bytes * heads
        )
        _copy_items(src, pool.data_ptr() + dst, head_bytes, (src_indices >= 0) & (dst_indices >= 0))


def transfer_kv_direct(
    src_layers: Sequence[Tensor],
    dst_layers: Sequence[Tensor],
    src_indices: Tensor,
    dst_indices: Tensor,
    page_size: int,
) -> None:
    """Replaces SGLang's function of this name. The indices list every token, so page_size is not used.

    The pools of both lists are [num_slots, ...].
    """
    src, dst = ([x.unsqueeze(1) for x in layers] for layers in (src_layers, dst_layers))
    multikv.move_tokens(src, dst, src_indices, dst_indices)


def transfer_kv_per_layer_direct_pf_lf(
    src_ptrs: Sequence[Tensor],
    dst_ptrs: Sequence[Tensor],
    src_indices: Tensor,
    dst_indices: Tensor,
    layer_id: int,
    page_size: int,
) -> None:
    """Replaces SGLang's function of this name.

    src_ptrs lists the pools of K and of V, or a single pool whose entries hold both. Each is page first, [num_pages,
    num_layers, page_size, ...]. dst_ptrs lists the pools [num_slots, ...] of the layers from layer_id on: first all of
    K and then all of V, or, if src_ptrs lists a single pool, one for each layer.
    """
    src = _layers_of_pages(src_ptrs, layer_id, len(dst_ptrs))
    _move_pages(src, [x.unsqueeze(1) for x in dst_ptrs], src_indices, dst_indices, page_size)


def transfer_kv_all_layer_direct_lf_pf(
    src_ptrs: Sequence[Tensor],
    dst_ptrs: Sequence[Tensor],
    src_indices: Tensor,
    dst_indices: Tensor,
    page_size: int,
) -> None:
    """Replaces SGLang's function of this name: transfer_kv_per_layer_direct_pf_lf in reverse, from layer 0 on."""
    dst = _layers_of_pages(dst_ptrs, 0, len(src_ptrs))
    _move_pages([x.unsqueeze(1) for x in src_ptrs], dst, src_indices, dst_indices, page_size)


def multi_layer_kv_transfer(
    key_value: Tensor,
    key_value_ptrs: Tensor,
    slot_mapping: Tensor,
    paged_memory_device: torch.device,
    page_buffer_size: int,
    direction: bool,
    use_mla: bool,
) -> None:
    """Replaces LMCache's function of this name.

    key_value is a chunk, [2, num_layers, num_tokens, elements]. key_value_ptrs lists the addresses of all layers, each
    [2, page_buffer_size, elements]. With use_mla, the first size of both is 1. If direction is true, the chunk is
    written; otherwise the layers are.
    """
    num_planes, num_bytes, slots = 1 if use_mla else 2, key_value[0, 0, 0].nbytes, slot_mapping.cpu()
    planes = page_buffer_size * torch.arange(num_planes)[:, None, None]
    layers = key_value_ptrs.cpu().view(torch.int64)[:, None] + num_bytes * (planes + slots)
    rows = torch.arange(layers.numel()).view(layers.shape)
    chunk = key_value.view(-1).data_ptr() + num_bytes * rows
    _copy_items(*((layers, chunk) if direction else (chunk, layers)), num_bytes, slots >= 0)


def fill_kv_cache(
    k_states: Tensor,
    v_states: Tensor | None,
    k_caches: Tensor,
    v_caches: Tensor | None,
    q_start_loc: Tensor,
    q_seq_length: Tensor,
    kv_seq_length: Tensor,
    max_q_seq_length: int,
    block_offsets: Tensor,
    k_scales_zeros: Tensor | None = None,
    v_scales_zeros: Tensor | None = None,
    quant_policy: int = 0,
    kv_layout: str = "bshd",
) -> None:
    """Replaces LMDeploy's function of this name, without quantisation.

    The caches are [num_blocks, block_size, num_heads, head_size], or [num_blocks, num_heads, block_size, head_size] if
    kv_layout is "bhsd".
    """
    if quant_policy:
        raise RuntimeError(f"fill_kv_cache: quant_policy: expected 0 (none), got {quant_policy}")
    if v_states is None or v_caches is None:  # the two halves of an entry are written as K and V
        (k_states, v_states), (k_caches, v_caches) = (x.tensor_split(2, -1) for x in (k_states, k_caches))
    keys, values = (x.flatten(0, -3) for x in (k_states, v_states))
    caches = [x.transpose(1, 2) if kv_layout == "bhsd" else x for x in (k_caches, v_caches)]
    ends, rows = q_start_loc + q_seq_length, torch.arange(len(keys), device=keys.device)
    sequences = torch.searchsorted(ends, rows, right=True).clamp(max=len(ends) - 1)
    positions, slots = (kv_seq_length - ends)[sequences] + rows, torch.empty_like(rows)
    bounds = torch.cat([q_start_loc, ends[-1:]])
    multikv.compute_slot_mapping([block_offsets], bounds, positions, [slots], [caches[0].size(1)])
    multikv.reshape_and_cache_flash(keys, values, caches[0], caches[1], slots, "auto", None, None)


def _bytes(pool: Tensor) -> Tensor:
    """Returns the bytes of a contiguous tensor. A tensor that is not contiguous raises an error."""
    return pool.view(-1).view(torch.uint8)


def _items(pool: Tensor, item_size: int) -> Tensor:
    """Returns a pool as a plane [num_items, 1, item_size] of bytes: each block has one slot, which holds one item."""
    return _bytes(pool).view(-1, 1, item_size)


def _copy_items(src: Tensor, dst: Tensor, item_size: int, is_used: Tensor) -> None:
    """Copies items of item_size bytes between addresses [..., num_tokens]; is_used says for which tokens."""
    src, dst = (x[..., is_used.cpu()].flatten() for x in torch.broadcast_tensors(src, dst))
    multikv.swap_blocks_batch(src, dst, torch.full_like(src, item_size))


def _layers_of_pages(pools: Sequence[Tensor], first_layer: int, num_planes: int) -> list[Tensor]:
    """Returns planes [num_pages, page_size, ...] of consecutive layers of pools that are page first."""
    num_layers = num_planes // len(pools)
    return [pool[:, layer] for pool in pools for layer in range(first_layer, first_layer + num_layers)]


def _move_pages(src: list[Tensor], dst: list[Tensor], src_indices: Tensor, dst_indices: Tensor, page_size: int) -> None:
    """Moves whole pages. Like SGLang's functions, it reads only the first of the page_size indices of each page."""

    def slots(planes: list[Tensor], indices: Tensor) -> Tensor:
        first = indices[::page_size, None]
        if planes[0].size(1) == page_size:  # the index is rounded down to a page
            first = first // page_size * page_size
        return (first + torch.arange(page_size, device=indices.device)).flatten()

    multikv.move_tokens(src, dst, slots(src, src_indices), slots(dst, dst_indices))
