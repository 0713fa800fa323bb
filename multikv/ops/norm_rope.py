"""RMS norm and rotary embedding of queries and keys, alone, and in one pass with the write into a paged cache."""

import torch
from torch import Tensor

from ..runtime.explanations import explaining

__all__ = ["qk_norm_rope_cache", "rms_norm", "rotary_embedding"]

_qk_norm_rope_cache = explaining(torch.ops.multikv.qk_norm_rope_cache.default)
_rms_norm = explaining(torch.ops.multikv.rms_norm.default)
_rotary_embedding = explaining(torch.ops.multikv.rotary_embedding.default)


def qk_norm_rope_cache(
    qkv: Tensor,
    q_out: Tensor,
    k_out: Tensor | None,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    head_size: int,
    is_neox: bool,
    kv_cache_dtype: str,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    q_scale: Tensor | None = None,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = -1.0,
    weight_bias: float = 0.0,
    norm_order: str = "head",
    rotary_offset: int = 0,
    mrope_section: list[int] | None = None,
    mrope_interleaved: bool = False,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> None:
    """Does all that lies between the projection of an attention layer and attention itself, in one pass.

    The query and key heads of each token are normed (optional) and rotated (optional). The queries go to q_out, which
    may be fp8, and the keys and the values go to the cache. The bytes are those of the separate calls: rms_norm, then
    rotary_embedding, then reshape_and_cache_flash or reshape_and_cache.

    A token with a negative slot is written to q_out and k_out, but not to the cache. On a GPU, so is a token with a
    slot past the end, and nothing is written of a token with a position outside cos_sin_cache.

    Args:
        qkv: [>= num_tokens, >= (num_heads + 2 * num_kv_heads) * head_size], float32, float16 or bfloat16: the query
            heads of a token, then its key heads, then its value heads. Columns after these are not read. The innermost
            stride is 1.
        q_out: [>= num_tokens, num_heads, head_size], written: the dtype of qkv, or a torch.float8 type, which needs
            q_scale. Any strides except that the innermost is 1. In eager code, q_out may be the view of the query heads
            in qkv. Any other overlap with qkv, and every overlap under torch.compile, is undefined.
        k_out: [>= num_tokens, num_kv_heads, head_size], the dtype of qkv, written: the keys as they are before they are
            quantised. None: they are written to the cache only. Strides as for q_out.
        key_cache: [num_blocks, block_size, num_kv_heads, head_size] with any strides except that the innermost is 1, or
            packed as for reshape_and_cache, [num_blocks, num_kv_heads, head_size / x, block_size, x]. Written. The
            dtype of qkv, or for fp8 formats uint8 or the matching torch.float8 type.
        value_cache: like key_cache; packed, it is [num_blocks, num_kv_heads, head_size, block_size] or [num_blocks,
            num_kv_heads, block_size / x, head_size, x]. Written.
        slot_mapping: [num_tokens], int32 or int64; see `multikv.ops`, Slots.
        positions: [>= num_tokens], or, if mrope_section is given, [3, >= num_tokens]. int32 or int64: the row of
            cos_sin_cache of each token. Not read if cos_sin_cache is None.
        cos_sin_cache: [num_positions, rotary_size], the dtype of qkv or float32: rotary_size / 2 cosines, then as many
            sines. rotary_size is even. The rounding is that of concat_and_cache_mla_rope_fused. None: no rotation.
        num_heads: the number of query heads, at least 0.
        num_kv_heads: the number of key heads, and of value heads, at least 1.
        head_size: the elements of a head.
        is_neox: whether the elements i and i + rotary_size / 2 of the rotated part are a pair (GPT-NeoX). If not, the
            elements 2i and 2i + 1 are (GPT-J).
        kv_cache_dtype: "auto", a float dtype or an fp8 format; see `multikv.ops`.
        k_scale: float32, one element or one per key head. Needed for fp8 formats, and not read for float formats.
        v_scale: float32, as many elements as k_scale.
        q_scale: float32, one element. Needed for a float8 q_out, and otherwise not read.
        q_weight: the weight of the norm of queries, [head_size], or [num_heads * head_size] for "all_heads"; float32 or
            the dtype of qkv. None: the normed queries are not multiplied.
        k_weight: the weight of the norm of keys, [head_size], or [num_kv_heads * head_size] for "all_heads".
        eps: what the norm adds to the mean of the squares, see rms_norm. A negative eps means that there is no norm.
        weight_bias: is added to the weights; 1 for models whose weights are stored minus 1, like Gemma.
        norm_order: "head": each head is normed and then rotated. "after_rope": each head is rotated, rounded, and then
            normed. "all_heads": one mean over all query heads, and one over all key heads; then the heads are rotated.
        rotary_offset: the first rotated element of a head. The elements outside [rotary_offset, rotary_offset +
            rotary_size) are not rotated.
        mrope_section: three numbers t, h, w with the sum rotary_size / 2: how many pairs take their position from each
            row of positions (multimodal rotary embedding). None: positions has one dimension.
        mrope_interleaved: how the rows take turns. False: the first t pairs use row 0, the next h row 1, the last w row
            2. True: pair i uses row 1 if i % 3 == 1 and i < 3 * h, row 2 if i % 3 == 2 and i < 3 * w, else row 0.
        k_scales: for formats with a scale for each token and head, which do not exist yet: None.
        v_scales: like k_scales.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride, format or value.
        IndexError: a slot is past the end of the cache, or a position is outside cos_sin_cache (on a GPU only if
            indices are checked).

    Example:
        >>> angles = torch.arange(4096)[:, None] * 10000 ** -(torch.arange(0, 128, 2) / 128)
        >>> table = torch.cat([angles.cos(), angles.sin()], 1)
        >>> qkv = torch.randn(100, (32 + 2 * 8) * 128, dtype=torch.bfloat16)
        >>> q = torch.empty(100, 32, 128, dtype=torch.bfloat16)
        >>> key_cache, value_cache = torch.zeros(2, 64, 16, 8, 128, dtype=torch.bfloat16)
        >>> slots, positions = torch.randperm(64 * 16)[:100], torch.arange(100)
        >>> multikv.qk_norm_rope_cache(
        ...     qkv, q, None, key_cache, value_cache, slots, positions, table, 32, 8, 128, True, "auto"
        ... )
    """
    _qk_norm_rope_cache(
        qkv,
        q_out,
        k_out,
        key_cache,
        value_cache,
        slot_mapping,
        positions,
        cos_sin_cache,
        num_heads,
        num_kv_heads,
        head_size,
        is_neox,
        kv_cache_dtype,
        k_scale,
        v_scale,
        q_scale,
        q_weight,
        k_weight,
        eps,
        weight_bias,
        norm_order,
        rotary_offset,
        mrope_section,
        mrope_interleaved,
        k_scales,
        v_scales,
    )


def rms_norm(out: Tensor, input: Tensor, weight: Tensor | None, eps: float, weight_bias: float = 0.0) -> None:
    """Writes x / sqrt(mean(x * x) + eps) * (weight + weight_bias), the root mean square norm over the last dimension.

    Every operation rounds to float32, and the result is rounded once to the dtype of out. With r = 1 / sqrt(sum / n +
    eps), the result is (x * r) * (weight + weight_bias). The squares of a row are added in a fixed order: neighbours
    are added, then neighbours of these sums, and so on; at the end of a row, zeros fill up the number of elements to a
    power of two. So the bytes are the same on every device.

    Args:
        out: [..., n], the dtype of input, written. Any strides except that the innermost is 1. In eager code it may be
            `input` itself.
        input: [..., n], float32, float16 or bfloat16, of up to 9 dimensions. Strides as for out.
        weight: [n], float32 or the dtype of input. None: the normed values are not multiplied.
        eps: a number of at least 0, rounded to float32.
        weight_bias: is added to the weights, rounded to float32; 1 for models whose weights are stored minus 1.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride or value.

    Example:
        >>> x, weight = torch.randn(100, 4096, dtype=torch.bfloat16), torch.ones(4096, dtype=torch.bfloat16)
        >>> out = torch.empty_like(x)
        >>> multikv.rms_norm(out, x, weight, 1e-6)
    """
    _rms_norm(out, input, weight, eps, weight_bias)


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
) -> None:
    """Applies rotary embedding in place to the first rotary_size elements of each head.

    A pair (x, y) becomes `(x * cos - y * sin, y * cos + x * sin)` with the cosine and sine of the token's position. The
    rounding is that of concat_and_cache_mla_rope_fused. On a GPU, a token with a position outside cos_sin_cache is left
    as it is.

    Args:
        positions: [num_tokens], int32 or int64: the position of each token, which is its row of cos_sin_cache.
        query: [num_tokens, num_heads * head_size] or [num_tokens, num_heads, head_size], float32, float16 or bfloat16,
            rotated in place. Any strides except that the innermost is 1.
        key: like query, with its own number of heads; rotated in place. None: there is only a query.
        head_size: the elements of a head.
        cos_sin_cache: [num_positions, rotary_size], the dtype of query or float32: rotary_size / 2 cosines, then as
            many sines. rotary_size is even and at most head_size.
        is_neox: which elements form a pair. True: i and i + rotary_size / 2 (GPT-NeoX). False: 2i and 2i + 1 (GPT-J).

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride or value.
        IndexError: a position is outside cos_sin_cache (on a GPU only if indices are checked).

    Example:
        >>> angles = torch.arange(4096)[:, None] * 10000 ** -(torch.arange(0, 128, 2) / 128)
        >>> table = torch.cat([angles.cos(), angles.sin()], 1)
        >>> query, key = torch.randn(100, 32, 128), torch.randn(100, 8, 128)
        >>> multikv.rotary_embedding(torch.arange(100), query, key, 128, table, True)
    """
    _rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox)
