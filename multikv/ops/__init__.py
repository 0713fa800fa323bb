"""The ops, typed and documented. Each is one call of `torch.ops.multikv.<name>`, where every argument is checked.

Common to all: ops return None and write only the arguments that their text says they write; they allocate nothing on
the device and do not synchronise (but see the swaps), so they can be captured in CUDA graphs and compiled with
fullgraph=True. They run on the current stream of their tensors' device, and all tensors are on one device unless it is
said otherwise. The innermost dimension has stride 1 (if its size is above 1); all other strides may be anything, and a
tensor may start at any element. Empty inputs do nothing.

Errors: a bad argument (rank, size, dtype, device, stride, format) is a RuntimeError and a bad index on CPU an
IndexError, both raised before anything is written; on a GPU a token with a bad index is skipped
(MULTIKV_CHECK_INDICES=1: checked, and raised, as on CPU).

Words: a cache is `num_blocks` blocks of `block_size` slots; `slot = block * block_size + offset`; an entry is what a
slot holds.

Slots: slot_mapping, int64 or int32, says how many tokens there are: other inputs may have more rows, which are neither
read nor written. A negative slot is padding: its token is skipped. A slot past the end of the cache is a bad index. Of
two tokens with one slot either may win (on CPU: the last). What no token maps to stays as it was.

Sequences: output row i belongs to the sequence s with `cu_seq_lens[s] <= i < cu_seq_lens[s + 1]`; it is that sequence's
position `p = i - cu_seq_lens[s] + seq_starts[s]`, which lies in block `block_table[s, p // block_size]` at offset
`p % block_size`. Tables, bounds and starts are int32 or int64. Bounds do not decrease, are not negative and not past
the end of the output. Block ids from 0 to num_blocks - 1 are good; those that no row needs are not looked at. Rows of
no sequence, and rows whose block lies past the table's width, are left as they were.

kv_cache_dtype, how a cache stores its elements:

- "auto": as they come, bit for bit; the cache has the dtype of the input. "float32", "float16", "bfloat16": the same,
  and the dtype is checked against the name.
- "fp8_e4m3fn", "fp8_e5m2", "fp8_e4m3fnuz", "fp8_e5m2fnuz": fp8, in a cache of uint8 or of the torch.float8 type of that
  format.
- "fp8", "fp8_e4m3": the e4m3 that the cache's dtype says; for uint8 the one that the device's attention reads: e4m3fn,
  except e4m3fnuz on gfx940 to gfx942. Where an op says *e4m3* and takes no name, it is the same.

fp8: `quantise(x, scale)` is a float32 division by the scale, rounding to nearest even, saturation to the largest finite
value (also of infinities); NaN becomes 0x7f (fnuz: 0x80). `dequantise(q, scale)` is `float32(q) * scale`, rounded once
to the output's dtype. Scales are float32 tensors of one element on the op's device, where they are read; for float
formats they are not looked at. Formats: OCP 8-bit Floating Point Specification 1.0 (e4m3fn, e5m2); Noune et al. 2022,
"8-bit Numerical Formats for Deep Neural Networks" (fnuz).

fp8_ds_mla, the entry of DeepSeek's sparse attention, 656 bytes: 512 e4m3 codes in 4 tiles of 128; the 4 scales of the
tiles, float32; 64 elements of 16 bits. The scale of a tile is `max(amax / M, 1e-4)`, M = 448 (fnuz: 224), rounded up to
a power of two; in amax a NaN does not count, and an infinity counts as the largest finite float32.
"""

from .convert import convert_fp8
from .gather import cp_gather_and_upconvert_fp8_kv_cache, cp_gather_cache, gather_and_maybe_dequant_cache
from .indexer import cp_gather_indexer_k_quant_cache, indexer_k_quant_and_cache
from .mla import (
    concat_and_cache_mla,
    concat_and_cache_mla_grouped,
    concat_and_cache_mla_rope_fused,
    concat_mla_q,
)
from .reshape_and_cache import reshape_and_cache, reshape_and_cache_flash
from .swap import swap_blocks, swap_blocks_batch, swap_blocks_layers

__all__ = [
    "concat_and_cache_mla",
    "concat_and_cache_mla_grouped",
    "concat_and_cache_mla_rope_fused",
    "concat_mla_q",
    "convert_fp8",
    "cp_gather_and_upconvert_fp8_kv_cache",
    "cp_gather_cache",
    "cp_gather_indexer_k_quant_cache",
    "gather_and_maybe_dequant_cache",
    "indexer_k_quant_and_cache",
    "reshape_and_cache",
    "reshape_and_cache_flash",
    "swap_blocks",
    "swap_blocks_batch",
    "swap_blocks_layers",
]
