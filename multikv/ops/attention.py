"""Attention over paged caches."""

import torch
from torch import Tensor

from ..runtime.explanations import explaining

__all__ = [
    "merge_attn_states",
    "paged_attention",
    "paged_attention_v1",
    "paged_attention_v2",
    "paged_attention_workspace_bytes",
]

_paged_attention = explaining(torch.ops.multikv.paged_attention.default)
_merge_attn_states = explaining(torch.ops.multikv.merge_attn_states.default)
_paged_attention_v1 = explaining(torch.ops.multikv.paged_attention_v1.default)
_paged_attention_v2 = explaining(torch.ops.multikv.paged_attention_v2.default)

# Keys are cut into granules of this many positions, and each granule may be computed by another thread block.
_GRANULE = 256
_MAX_WORKSPACE_BYTES = 128 << 20


def paged_attention_workspace_bytes(
    num_query_tokens: int, num_query_heads: int, value_size: int, max_seq_len: int
) -> int:
    """Returns the number of workspace bytes with which `paged_attention` is fastest.

    A smaller workspace, 0 bytes included, makes the op slower on a GPU, and never changes its results. The CPU does not
    use a workspace.

    Args:
        num_query_tokens: the largest number of query tokens of a call.
        num_query_heads: number of query heads.
        value_size: head size of the values.
        max_seq_len: the length of the longest sequence.

    Returns:
        At most 128 MiB; 0 if no sequence is long enough to be split.

    Raises:
        ValueError: a number is negative.

    Example:
        >>> size = multikv.paged_attention_workspace_bytes(64, 32, 128, 8192)
        >>> workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    """
    if min(num_query_tokens, num_query_heads, value_size, max_seq_len) < 0:
        numbers = f"{num_query_tokens}, {num_query_heads}, {value_size}, {max_seq_len}"
        raise ValueError(f"paged_attention_workspace_bytes: expected numbers of at least 0, got {numbers}")
    num_granules = -(-max_seq_len // _GRANULE)
    if num_granules <= 1:
        return 0
    partial_bytes = 4 * (value_size + 2)  # a granule's output, a number near its largest score, sum of weights
    return min(num_query_tokens * num_query_heads * num_granules * partial_bytes, _MAX_WORKSPACE_BYTES)


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
) -> None:
    """Computes attention of query tokens over the keys and values of their sequences in a paged cache.

    Sequence s has `n = seq_lens[s]` keys. Key j is in block `block_table[s, j // block_size]` at offset
    `j % block_size`. The sequence owns the query rows `cu_query_lens[s] .. cu_query_lens[s + 1] - 1`, or row s alone if
    cu_query_lens is None. Row i of its q_len rows stands at position `p = n - q_len + i`. Query head h reads kv head
    `h // (num_query_heads // num_kv_heads)`.

    Key j is visible to the row at position p >= 0 if `j <= p` (causal) and `j >= p - window_left` (window_left >= 0).
    With dequantised keys and values, over the visible keys and in float32:

        s[j] = scale * (query . key[j])
        s[j] = softcap * tanh(s[j] / softcap)          if softcap > 0
        s[j] = s[j] + alibi_slopes[h] * (j - p)        with alibi_slopes
        l    = sum(exp(s[j])) + exp(sinks[h])          the second term with sinks
        out  = sum(exp(s[j]) * value[j]) / l
        lse  = log(l)

    A row that sees no key has out 0, and lse -infinity or its sink. The bits of a row depend on the row, on its visible
    keys and values and on the options alone: not on the batch, the block ids, the block size, the layout of the cache,
    the length of the query, the workspace or the number of threads (docs/attention.md).

    Args:
        query: [>= num_tokens, num_query_heads, head_size], float32, float16 or bfloat16. num_query_heads is a multiple
            of num_kv_heads.
        key_cache: [num_blocks, block_size, num_kv_heads, head_size] with any strides (see `reshape_and_cache_flash`),
            or packed, with five dimensions (see `reshape_and_cache`).
        value_cache: [num_blocks, block_size, num_kv_heads, value_size] with any strides, or packed if key_cache is. A
            packed value_cache has four dimensions, or five if the values are interleaved, and its value_size is
            head_size. The dtype of key_cache.
        out: [>= num_tokens, num_query_heads, value_size], the dtype of query, written, except for rows of no sequence.
        lse: [num_query_heads, >= num_tokens], float32, any strides, written: natural logarithms of the softmax sums.
            None: not computed.
        block_table: [>= num_sequences, blocks_per_sequence], int32 or int64. Entries that no row needs are not checked.
        seq_lens: [num_sequences], int32 or int64: the number of keys of each sequence; may be 0.
        cu_query_lens: [num_sequences + 1], int32 or int64: the first query row of each sequence, and the end of the
            last one. None: one row for each sequence.
        max_query_len: the most rows of a sequence; -1 means query.size(0). On a GPU, later rows are not computed.
        max_seq_len: the most keys of a sequence; -1 means blocks_per_sequence * block_size. On a GPU, later keys are
            not visible.
        scale: factor of the scores, usually head_size**-0.5.
        kv_cache_dtype: "auto", a float dtype or an fp8 format; see `multikv.ops`.
        k_scale: float32, one element or one per kv head. May be None for float formats, which do not read it.
        v_scale: like k_scale.
        workspace: uint8, contiguous, of any size, 0 included; its start is a multiple of 16 bytes. Its content before
            the call does not matter, and is undefined after it. Calls that may run at the same time need their own. See
            `paged_attention_workspace_bytes`.
        causal: whether a row sees only keys up to its own position.
        window_left: how many keys before its own position a row sees; -1: all.
        softcap: bound of the scores; 0: none.
        alibi_slopes: [num_query_heads], float32.
        sinks: [num_query_heads], float32 or the dtype of query: for each head, the score of a further key with value 0.
        query_mask: [>= num_tokens], int64, for the trees of speculative decoding. For the keys `j >= n - q_len`, bit
            `j - (n - q_len)` of a row's mask replaces the condition `j <= p`. Requires causal, and a max_query_len of
            at most 64.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride, format or value.
        IndexError: a length, a bound or a needed block id is out of range (on a GPU only if indices are checked; if
            they are not checked, the keys of such a block are not visible).

    Example:
        >>> query = torch.randn(2, 32, 128, dtype=torch.bfloat16)  # one token of each of two sequences
        >>> key_cache, value_cache = torch.randn(2, 64, 16, 8, 128, dtype=torch.bfloat16)  # 64 blocks of 16 slots
        >>> table, lengths = torch.tensor([[3, 7], [5, 0]]), torch.tensor([20, 16])
        >>> out, workspace = torch.empty_like(query), torch.empty(0, dtype=torch.uint8)
        >>> multikv.paged_attention(query, key_cache, value_cache, out, None, table, lengths, None, 1, -1, 128**-0.5,
        ...                         "auto", None, None, workspace)
    """
    _paged_attention(
        query,
        key_cache,
        value_cache,
        out,
        lse,
        block_table,
        seq_lens,
        cu_query_lens,
        max_query_len,
        max_seq_len,
        scale,
        kv_cache_dtype,
        k_scale,
        v_scale,
        workspace,
        causal,
        window_left,
        softcap,
        alibi_slopes,
        sinks,
        query_mask,
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
    """Merges the results of attention over two disjoint sets of keys, the prefix and the suffix.

    For each head of each token, with `m = max(prefix_lse, suffix_lse)`, `a = exp(prefix_lse - m)` and
    `b = exp(suffix_lse - m)`:

    - `output = (prefix_output * a + suffix_output * b) / (a + b)`
    - `output_lse = m + log(a + b)`

    An infinite lse of either sign marks an empty side, whose output is not looked at. The other side is then copied bit
    for bit, or quantised with output_scale. If both sides are empty, output is 0 and output_lse is -infinity. Names and
    argument order are vLLM's.

    Args:
        output: [num_tokens, num_heads, head_size], written. The dtype of prefix_output, or a torch.float8 type with
            output_scale. It may be prefix_output or suffix_output itself.
        output_lse: [num_heads, >= num_tokens], float32, any strides, written. None: not computed.
        prefix_output: [>= num_tokens, num_heads, head_size], float32, float16 or bfloat16.
        prefix_lse: [num_heads, >= num_tokens], float32, any strides: natural logarithms. Multiply those of base 2 by
            log(2).
        suffix_output: like prefix_output, of the same dtype.
        suffix_lse: like prefix_lse.
        prefill_tokens_with_context: rows from here on are copied from the suffix. None: no row.
        output_scale: float32, one element: output is `quantise(x, output_scale)` of the float32 result x. None: no fp8.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device or stride.

    Example:
        >>> prefix, suffix = torch.randn(2, 100, 32, 128, dtype=torch.bfloat16)
        >>> prefix_lse, suffix_lse = torch.randn(2, 32, 100)
        >>> multikv.merge_attn_states(prefix, None, prefix, prefix_lse, suffix, suffix_lse)  # in place
    """
    _merge_attn_states(
        output,
        output_lse,
        prefix_output,
        prefix_lse,
        suffix_output,
        suffix_lse,
        prefill_tokens_with_context,
        output_scale,
    )


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
) -> None:
    """Computes what `paged_attention` computes for one query token a sequence, with the arguments of vLLM 0.13.

    The bits are those of `paged_attention` with the same tensors, without a workspace.

    Args:
        out: [>= num_sequences, num_query_heads, head_size], the dtype of query, written.
        query: [>= num_sequences, num_query_heads, head_size].
        key_cache: packed, [num_blocks, num_kv_heads, head_size / x, block_size, x] (see `reshape_and_cache`).
        value_cache: packed, with four dimensions, or with five if the values are interleaved.
        num_kv_heads: that of key_cache.
        scale: factor of the scores.
        block_tables: [>= num_sequences, blocks_per_sequence], int32 or int64.
        seq_lens: [num_sequences], int32 or int64.
        block_size: that of key_cache.
        max_seq_len: the most keys of a sequence; -1 means blocks_per_sequence * block_size.
        alibi_slopes: [num_query_heads], float32, or None.
        kv_cache_dtype: "auto", a float dtype or an fp8 format; see `multikv.ops`.
        k_scale: float32, one element or one per kv head. May be None for float formats, which do not read it.
        v_scale: like k_scale.
        tp_rank: not used.
        blocksparse_local_blocks: not used.
        blocksparse_vert_stride: at most 1, because block sparsity is not supported.
        blocksparse_block_size: not used.
        blocksparse_head_sliding_step: not used.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride, format or value.
        IndexError: a length or a needed block id is out of range (on a GPU only if indices are checked).

    Example:
        >>> query, out = torch.randn(2, 32, 128, dtype=torch.bfloat16), torch.empty(2, 32, 128, dtype=torch.bfloat16)
        >>> key_cache = torch.randn(64, 8, 128 // 8, 16, 8, dtype=torch.bfloat16)  # 64 blocks of 16 slots
        >>> value_cache = torch.randn(64, 8, 128, 16, dtype=torch.bfloat16)
        >>> tables, lengths, one = torch.tensor([[3, 7], [5, 0]]), torch.tensor([20, 16]), torch.ones(1)
        >>> multikv.paged_attention_v1(out, query, key_cache, value_cache, 8, 128**-0.5, tables, lengths, 16, 32, None,
        ...                            "auto", one, one, 0, 0, 0, 64, 0)
    """
    _paged_attention_v1(
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
) -> None:
    """Computes what `paged_attention_v1` computes, with the memory of tmp_out as workspace.

    The bits are those of `paged_attention_v1`.

    Args:
        out: see `paged_attention_v1`.
        exp_sums: vLLM's buffer for softmax sums. Its content after the call is undefined.
        max_logits: vLLM's buffer for maxima. Its content after the call is undefined.
        tmp_out: vLLM's buffer for partial outputs. If it is contiguous and starts at a multiple of 16 bytes, it is the
            workspace of `paged_attention`. Its content after the call is undefined.
        query: see `paged_attention_v1`.
        key_cache: see `paged_attention_v1`.
        value_cache: see `paged_attention_v1`.
        num_kv_heads: see `paged_attention_v1`.
        scale: see `paged_attention_v1`.
        block_tables: see `paged_attention_v1`.
        seq_lens: see `paged_attention_v1`.
        block_size: see `paged_attention_v1`.
        max_seq_len: see `paged_attention_v1`.
        alibi_slopes: see `paged_attention_v1`.
        kv_cache_dtype: see `paged_attention_v1`.
        k_scale: see `paged_attention_v1`.
        v_scale: see `paged_attention_v1`.
        tp_rank: see `paged_attention_v1`.
        blocksparse_local_blocks: see `paged_attention_v1`.
        blocksparse_vert_stride: see `paged_attention_v1`.
        blocksparse_block_size: see `paged_attention_v1`.
        blocksparse_head_sliding_step: see `paged_attention_v1`.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride, format or value.
        IndexError: a length or a needed block id is out of range (on a GPU only if indices are checked).

    Example:
        >>> query, out = torch.randn(2, 32, 128, dtype=torch.bfloat16), torch.empty(2, 32, 128, dtype=torch.bfloat16)
        >>> sums, maxima, tmp = torch.empty(2, 32, 1), torch.empty(2, 32, 1), torch.empty(2, 32, 1, 128).bfloat16()
        >>> key_cache = torch.randn(64, 8, 128 // 8, 16, 8, dtype=torch.bfloat16)  # 64 blocks of 16 slots
        >>> value_cache = torch.randn(64, 8, 128, 16, dtype=torch.bfloat16)
        >>> tables, lengths, one = torch.tensor([[3, 7], [5, 0]]), torch.tensor([20, 16]), torch.ones(1)
        >>> multikv.paged_attention_v2(out, sums, maxima, tmp, query, key_cache, value_cache, 8, 128**-0.5, tables,
        ...                            lengths, 16, 32, None, "auto", one, one, 0, 0, 0, 64, 0)
    """
    _paged_attention_v2(
        out,
        exp_sums,
        max_logits,
        tmp_out,
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
    )
