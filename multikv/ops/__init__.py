"""The ops: typed, documented functions, each one call of `torch.ops.multikv.<name>`, where every argument is checked.

What all ops have in common:

**Results.** Ops return None. They write only the arguments that their documentation marks as written. Arguments that
are written must not overlap each other, nor an argument that is read, unless the documentation says otherwise.

**Devices and streams.** All tensors of a call are on one device unless the documentation says otherwise. The op runs on
that device's current stream. It allocates no device memory and does not synchronise (swaps of pageable memory are the
exception), so it can be captured in a CUDA graph and compiled with `fullgraph=True`.

**Strides.** The innermost dimension has stride 1 if its size is above 1. All other strides are free, and a tensor may
start at any element of its storage. Empty inputs do nothing.

**Errors.** A bad argument (rank, size, dtype, device, stride, format) raises RuntimeError. A bad index raises
IndexError on a CPU. Both are raised before anything is written. On a GPU, a token with a bad index is skipped; with
MULTIKV_CHECK_INDICES=1 the op checks its indices and raises IndexError there too.

**Words.** A cache has `num_blocks` blocks of `block_size` slots. A slot is the number `block * block_size + offset`. An
entry is what one slot holds. A row is one line of a 2-D input or output.

**Slots.** `slot_mapping` is int32 or int64 and its length is the number of tokens. Other inputs may have more rows,
which are neither read nor written. A negative slot is padding: its token is skipped. A slot past the end of the cache
is a bad index. If two tokens have one slot, either is written (on a CPU, the last). Other entries keep their content.

**Sequences.** Output row i belongs to the sequence s with `cu_seq_lens[s] <= i < cu_seq_lens[s + 1]`. It holds position
`p = i - cu_seq_lens[s] + seq_starts[s]` of that sequence, which is in block `block_table[s, p // block_size]` at offset
`p % block_size`. Block tables, bounds and starts are int32 or int64. Bounds do not decrease, are not negative and do
not exceed the number of rows. Block ids are in [0, num_blocks); ids that no row needs are not checked. Rows of no
sequence, and rows whose block lies past the width of the block table, keep their content.

**kv_cache_dtype** is the format in which a cache stores its elements (`multikv.formats` has the table):

| name | elements of the cache |
|---|---|
| `auto` | those of the input, bit for bit; the cache has the input's dtype |
| `float32`, `float16`, `bfloat16` | the same; the dtype is checked against the name |
| `fp8_e4m3fn`, `fp8_e5m2`, `fp8_e4m3fnuz`, `fp8_e5m2fnuz` | fp8 codes; the cache is uint8 or a torch.float8 type |
| `fp8`, `fp8_e4m3` | the e4m3 format of the cache's dtype; for uint8, the *native e4m3* of the device |

The *native e4m3* of a device is the format that its matrix units read: e4m3fnuz on gfx940, gfx941 and gfx942, e4m3fn on
all others.

**fp8.** `quantise(x, scale)` divides by the scale in float32, rounds to nearest even, and saturates to the largest
finite value, also for infinities; NaN becomes 0x7f (fnuz formats: 0x80). `dequantise(q, scale)` is
`float32(q) * scale`, rounded once to the dtype of the output. Scales are float32 tensors on the device of the op, which
reads them there; float formats do not read them. Sources: e4m3fn and e5m2 are defined by the OCP 8-bit Floating Point
Specification 1.0; the fnuz formats by Noune et al. 2022, "8-bit Numerical Formats for Deep Neural Networks".

**fp8_ds_mla** is the 656-byte entry of DeepSeek's sparse attention (source: FlashMLA and vLLM):

    byte  0                  512           528             656
          | 512 e4m3 codes   | 4 scales    | 64 elements   |
          | 4 tiles of 128   | float32     | of 16 bits    |

The scale of a tile is `max(amax / M, 1e-4)` rounded up to a power of two, with M = 448 (e4m3fnuz: 224). amax is the
largest magnitude of the tile; NaN is ignored and an infinity counts as the largest finite float32.
"""

import typing

from ..runtime import exports
from .convert import *
from .gather import *
from .indexer import *
from .mla import *
from .mla_rope import *
from .reshape_and_cache import *
from .swap import *

if not typing.TYPE_CHECKING:  # type checkers take the names from the star imports
    __all__ = list(exports.public_names(globals()))
