"""Attention over paged caches, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..formats import Family
from .formats import bad_index, decode_fp8, encode_fp8, fp8_format
from .gather import check_bounds

__all__ = ["merge_attn_states", "paged_attention", "paged_attention_v1", "paged_attention_v2"]


class AttentionRow(NamedTuple):
    """The result for one query row in float64, and what the error bound of an implementation is computed from."""

    row: int
    out: Tensor  # [Hq, Dv]
    lse: Tensor  # [Hq]
    weighted: Tensor  # [Hq, Dv]: sum of p[j] * |v[j]|, with the softmax weights p
    magnitude: Tensor  # [Hq]: max over j of |scale| * sum of |q[i] * k[j, i]| + |alibi bias|
    num_visible: int


@dataclass
class Options:
    """The arguments of paged_attention that say which keys are visible, and how scores are computed."""

    scale: float
    causal: bool = True
    window_left: int = -1
    softcap: float = 0.0
    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None
    query_mask: Tensor | None = None

    def visible(self, row: int, i: int, length: int, q_len: int) -> Tensor:
        """Returns which keys the i-th query row of a sequence sees.

        The sequence has `length` keys and q_len query rows. `row` is the index of the query row among those of all
        sequences.
        """
        p, key = length - q_len + i, torch.arange(length)
        if p < 0:
            return torch.zeros(length, dtype=torch.bool)
        seen = key <= p if self.causal else torch.ones(length, dtype=torch.bool)
        if self.query_mask is not None:
            bit = key - (length - q_len)
            is_set = (self.query_mask[row].cpu() >> bit.clamp(0, 63)) & 1 == 1
            seen = torch.where(bit >= 0, is_set & (bit < 64), seen)
        return seen & (key >= p - self.window_left) if self.window_left >= 0 else seen


def _repeat_heads(x: Tensor, num_query_heads: int) -> Tensor:
    """Returns [n, Hq, D] for keys or values [n, Hk, D]: query head h reads kv head h // (Hq // Hk)."""
    return x.repeat_interleave(num_query_heads // max(x.shape[1], 1), 1)


def attend(query: Tensor, keys: Tensor, values: Tensor, distances: Tensor, options: Options, row: int) -> AttentionRow:
    """Returns the attention of one query row over the keys that it sees.

    query [Hq, D]; keys [n, Hq, D] and values [n, Hq, Dv], dequantised; distances [n], j - p of each key; all float64.
    """
    scores = torch.einsum("hd,nhd->hn", query, keys) * options.scale
    magnitude = torch.einsum("hd,nhd->hn", query.abs(), keys.abs()) * abs(options.scale)
    if options.softcap > 0:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if options.alibi_slopes is not None:
        bias = options.alibi_slopes.double().cpu()[:, None] * distances
        scores, magnitude = scores + bias, magnitude + bias.abs()
    everything = scores
    if options.sinks is not None:
        everything = torch.cat([scores, options.sinks.double().cpu()[:, None]], 1)
    lse = torch.logsumexp(everything, 1) if everything.shape[1] else torch.full((len(query),), -math.inf).double()
    weights = torch.where(lse[:, None] == -math.inf, 0.0, torch.exp(scores - lse[:, None]))
    out = torch.einsum("hn,nhd->hd", weights, values)
    weighted = torch.einsum("hn,nhd->hd", weights, values.abs())
    most = magnitude.amax(1) if len(keys) else torch.zeros(len(query)).double()
    return AttentionRow(row, out, lse, weighted, most, len(keys))


def _by_slot(cache: Tensor, is_key: bool) -> Tensor:
    """Returns a key cache of any layout, or a packed value cache, as [N, B, H, D]."""
    if cache.dim() == 5:  # packed keys [N, H, D/x, B, x], or packed and interleaved values [N, H, B/x, D, x]
        return cache.permute(0, 3, 1, 2, 4).flatten(3) if is_key else cache.permute(0, 2, 4, 1, 3).flatten(1, 2)
    return cache if is_key else cache.permute(0, 3, 1, 2)  # packed values [N, H, D, B]


def _dequantised(cache: Tensor, scale: Tensor | None, kv_cache_dtype: str, e4m3_of_bytes: str) -> Tensor:
    """Returns entries [n, H, D] in float64, each with its scale."""
    format = fp8_format(kv_cache_dtype, cache.dtype, e4m3_of_bytes, Family.CACHE)
    if format is None:
        return cache.cpu().double()
    assert scale is not None
    values = decode_fp8(cache.view(torch.uint8), format).double()
    return values * scale.cpu().double().reshape(-1).expand(cache.shape[1])[:, None]


@dataclass
class Sequences:
    """The arguments of paged_attention that describe the sequences."""

    block_table: Tensor
    seq_lens: Tensor
    cu_query_lens: Tensor | None
    max_query_len: int
    max_seq_len: int

    def rows(self, num_rows: int, num_slots: int, bad_indices: str) -> Iterator[tuple[int, int, range, int]]:
        """Yields of each sequence: its index, its length, its query rows, and its number of keys that can be visible.

        This number is the length, limited to max_seq_len and to num_slots, the slots of a row of the block table.
        """
        lengths = self.seq_lens.tolist()
        bounds = list(range(len(lengths) + 1)) if self.cu_query_lens is None else self.cu_query_lens.tolist()
        most = num_slots if self.max_seq_len < 0 else min(self.max_seq_len, num_slots)
        most_rows = num_rows if self.max_query_len < 0 else self.max_query_len
        check_bounds("cu_query_lens", bounds, num_rows)
        for s, length in enumerate(lengths):
            rows = range(bounds[s], bounds[s + 1])
            if bad_indices == "raise" and not 0 <= length <= most:
                raise bad_index("seq_lens", s, length)
            if bad_indices == "raise" and len(rows) > most_rows:
                raise bad_index("cu_query_lens", s + 1, bounds[s + 1])
            yield s, length, rows, min(length, most)


def attention_rows(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    sequences: Sequences,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    options: Options,
    num_rows: int,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> Iterator[AttentionRow]:
    """Yields the result of every query row that paged_attention computes."""
    is_packed = key_cache.dim() == 5
    key_slots = _by_slot(key_cache, True)
    value_slots = _by_slot(value_cache, False) if is_packed else value_cache
    num_blocks, block_size = key_slots.shape[:2]
    table, num_slots = sequences.block_table.tolist(), sequences.block_table.shape[1] * block_size
    for s, length, rows, num_keys in sequences.rows(num_rows, num_slots, bad_indices):
        key = torch.arange(num_keys)
        blocks = torch.tensor(table[s], dtype=torch.int64)[key // block_size]
        is_good = (blocks >= 0) & (blocks < num_blocks)
        at = torch.where(is_good, blocks, 0), key % block_size  # a bad block is replaced; its keys are not used
        keys, values = (
            _repeat_heads(_dequantised(slots[at], scale, kv_cache_dtype, e4m3_of_bytes), query.shape[1])
            if num_blocks and rows
            else torch.empty(num_keys, query.shape[1], slots.shape[3], dtype=torch.float64)
            for slots, scale in ((key_slots, k_scale), (value_slots, v_scale))
        )
        for i, row in enumerate(rows):
            if 0 <= sequences.max_query_len <= i:
                break  # a query token past the bound is not computed
            seen = options.visible(row, i, length, len(rows))[:num_keys]
            if bad_indices == "raise" and (seen & ~is_good).any():
                j = int((seen & ~is_good).nonzero()[0])
                raise bad_index("block_table", (s, j // block_size), table[s][j // block_size])
            seen &= is_good
            distances = key[seen].double() - (length - len(rows) + i)
            yield attend(query[row].cpu().double(), keys[seen], values[seen], distances, options, row)


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    out: Tensor,
    lse: Tensor | None,
    block_table: Tensor,
    seq_lens: Tensor,
    cu_query_lens: Tensor | None,
    max_query_len: int,
    max_seq_len: int,
    scale: float,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    workspace: Tensor,
    causal: bool = True,
    window_left: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    query_mask: Tensor | None = None,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """Writes softmax(scale * q . k) @ v over the visible keys of each query row, and the logarithm of the softmax sum.

    query [>=T, Hq, D]; out [>=T, Hq, Dv]; lse [Hq, >=T]; caches [N, B, Hk, D] and [N, B, Hk, Dv], or packed;
    block_table [>=S, blocks of a sequence]; seq_lens [S]; cu_query_lens [S + 1], or None for one row a sequence.
    A row that sees no key has out 0, and lse -infinity or its sink. The workspace is not used.
    """
    rows = min(x.shape[dim] for x, dim in ((query, 0), (out, 0), (lse, 1), (query_mask, 0)) if x is not None)
    results = list(
        attention_rows(
            query,
            key_cache,
            value_cache,
            Sequences(block_table, seq_lens, cu_query_lens, max_query_len, max_seq_len),
            kv_cache_dtype,
            k_scale,
            v_scale,
            Options(scale, causal, window_left, softcap, alibi_slopes, sinks, query_mask),
            rows,
            bad_indices,
            e4m3_of_bytes,
        )
    )
    for result in results:
        out[result.row] = result.out.to(out.dtype).to(out.device)
        if lse is not None:
            lse[:, result.row] = result.lse.float().to(lse.device)


def paged_attention_v1(
    out: Tensor,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    scale: float,
    block_tables: Tensor,
    seq_lens: Tensor,
    block_size: int,
    max_seq_len: int,
    alibi_slopes: Tensor | None,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    tp_rank: int,
    blocksparse_local_blocks: int,
    blocksparse_vert_stride: int,
    blocksparse_block_size: int,
    blocksparse_head_sliding_step: int,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """Writes what paged_attention writes for one causal query row a sequence, from packed caches."""
    paged_attention(
        query,
        key_cache,
        value_cache,
        out,
        None,
        block_tables,
        seq_lens,
        None,
        -1,
        max_seq_len,
        scale,
        kv_cache_dtype,
        k_scale,
        v_scale,
        torch.empty(0, dtype=torch.uint8),
        alibi_slopes=alibi_slopes,
        bad_indices=bad_indices,
        e4m3_of_bytes=e4m3_of_bytes,
    )


def paged_attention_v2(
    out: Tensor,
    exp_sums: Tensor,
    max_logits: Tensor,
    tmp_out: Tensor,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    scale: float,
    block_tables: Tensor,
    seq_lens: Tensor,
    block_size: int,
    max_seq_len: int,
    alibi_slopes: Tensor | None,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    tp_rank: int,
    blocksparse_local_blocks: int,
    blocksparse_vert_stride: int,
    blocksparse_block_size: int,
    blocksparse_head_sliding_step: int,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """Writes what paged_attention_v1 writes. The three buffers are not used."""
    paged_attention_v1(
        out,
        query,
        key_cache,
        value_cache,
        num_kv_heads,
        scale,
        block_tables,
        seq_lens,
        block_size,
        max_seq_len,
        alibi_slopes,
        kv_cache_dtype,
        k_scale,
        v_scale,
        tp_rank,
        blocksparse_local_blocks,
        blocksparse_vert_stride,
        blocksparse_block_size,
        blocksparse_head_sliding_step,
        bad_indices=bad_indices,
        e4m3_of_bytes=e4m3_of_bytes,
    )


def merge_attn_states(
    output: Tensor,
    output_lse: Tensor | None,
    prefix_output: Tensor,
    prefix_lse: Tensor,
    suffix_output: Tensor,
    suffix_lse: Tensor,
    prefill_tokens_with_context: int | None = None,
    output_scale: Tensor | None = None,
) -> None:
    """Writes the attention over the union of two disjoint sets of keys.

    output, prefix_output and suffix_output [>=T, Hq, Dv]; all lse [Hq, >=T]; T = output.size(0). An infinite lse marks
    an empty side. Rows from prefill_tokens_with_context on are the suffix's.
    """
    num_tokens = len(output)
    merged = num_tokens if prefill_tokens_with_context is None else min(prefill_tokens_with_context, num_tokens)
    p, s = (x[:, :num_tokens].cpu().t() for x in (prefix_lse, suffix_lse))  # [T, Hq]
    prefix, suffix = (x[:num_tokens].cpu() for x in (prefix_output, suffix_output))
    most = torch.maximum(p, s).double()
    a, b = torch.exp(p.double() - most), torch.exp(s.double() - most)
    total = a + b
    lse = (most + torch.log(total)).float()
    # The error of float64 is negligible beside the rounding to the dtype of the output.
    x = (prefix.double() * a[..., None] + suffix.double() * b[..., None]) / total[..., None]
    x = x.to(prefix.dtype) if output_scale is None else x.float()
    wide_prefix, wide_suffix = (side.to(x.dtype) for side in (prefix, suffix))
    no_prefix, no_suffix = p.isinf(), s.isinf()
    x = torch.where(no_suffix[..., None], wide_prefix, x)
    lse = torch.where(no_suffix, p, lse)
    x = torch.where(no_prefix[..., None], wide_suffix, x)
    lse = torch.where(no_prefix, s, lse)
    empty = no_prefix & no_suffix
    x = torch.where(empty[..., None], 0.0, x)
    lse = torch.where(empty, -math.inf, lse)
    x[merged:], lse[merged:] = wide_suffix[merged:], s[merged:]
    if output_scale is None:
        output.copy_(x)
    else:
        format = fp8_format("fp8", output.dtype) if "e4m3" in str(output.dtype) else _e5m2_format(output.dtype)
        assert format is not None
        output.view(torch.uint8).copy_(encode_fp8(x / output_scale.cpu(), format))
    if output_lse is not None:
        output_lse[:, :num_tokens] = lse.t().to(output_lse.device)


def _e5m2_format(dtype: torch.dtype) -> str:
    return "e5m2" if dtype == torch.float8_e5m2 else "e5m2fnuz"
