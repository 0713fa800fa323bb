"""The ops: documented, typed functions. Each calls `torch.ops.multikv.<name>`, which checks every argument.

This page describes what all ops have in common. The docstring of an op names the exceptions.

**Words.** A *cache* is a tensor of `num_blocks` blocks of `block_size` slots each. A *slot* is the number
`block * block_size + offset`. An *entry* is what one slot holds: the data of one token for all its heads. A *row* is
one line of a 2-D input or output. With a block_size of 4:

    block     0               1               2
    offset    0   1   2   3   0   1   2   3   0   1   2   3
    slot      0   1   2   3   4   5   6   7   8   9  10  11

**Results.** Ops return None. An op writes only the arguments whose documentation says that they are written. The
elements of a written argument must not overlap those of another argument, written or read, but views of disjoint
elements of one storage are allowed. Nor may the elements of a written argument overlap each other: a stride of 0 raises
RuntimeError. Most other overlaps are not detected, and the values written are then undefined.

**Devices and streams.** All tensors of a call are on one device. The op runs on the current stream of that device. It
allocates no device memory, and it does not synchronise the host with the device unless indices are checked. So it can
be captured in a CUDA graph and compiled with `fullgraph=True`.

**Autograd.** Ops record no gradients: an input that requires grad is treated as detached. A call bumps the version of
every tensor that it writes, so a backward pass that needs what was overwritten raises RuntimeError, as it does after an
in-place op of PyTorch. A written tensor that requires grad raises RuntimeError unless grad mode is off. Caches that are
given by their addresses have no version that an op could bump.

**Strides.** The innermost dimension has stride 1 if its size is above 1. All other strides are free, and a tensor may
start at any element of its storage. A call with empty inputs writes nothing.

**Errors.** An argument of a wrong Python type, such as a list for a tensor, raises TypeError; a call through
torch.ops.multikv raises PyTorch's RuntimeError. Every other bad argument raises RuntimeError: its rank, size, dtype,
device, layout, stride or format is wrong, or its storage ends too early. On a CPU, a bad index raises IndexError. All
of these are raised before anything is written. On a GPU, the op skips a token, or an output row, whose index is bad.
With the environment variable MULTIKV_CHECK_INDICES=1, or after `platforms.set_check_indices(True)`, GPU ops raise
IndexError, too.

**Slots.** `slot_mapping` has one element for each token, the slot that the token is written to, as int32 or int64. Its
length is the number of tokens; if another input has more rows, those are neither read nor written. A negative slot is
padding: the op skips the token. A slot of `num_blocks * block_size` or more is a bad index. If several tokens have the
same slot, a CPU stores the last of them, and a GPU one of them or parts of several. The entries of all other slots keep
their content.

**Sequences.** A gather copies entries of sequences to consecutive output rows. Row s of `block_table` lists the blocks
of sequence s: position p is in block `block_table[s, p // block_size]` at offset `p % block_size`. Sequence s fills the
output rows i with `cu_seq_lens[s] <= i < cu_seq_lens[s + 1]`, and row i holds position
`p = i - cu_seq_lens[s] + seq_starts[s]`. If seq_starts is None, seq_starts[s] is 0. With a block_size of 4,
`block_table = [[3, 1], [0, 2]]`, `cu_seq_lens = [0, 6, 9]` and `seq_starts = [0, 2]`:

    output row   0   1   2   3   4   5   6   7   8
    sequence     0   0   0   0   0   0   1   1   1
    position     0   1   2   3   4   5   2   3   4
    block        3   3   3   3   1   1   0   0   2
    offset       0   1   2   3   0   1   2   3   0

All three tensors are int32 or int64. The elements of cu_seq_lens do not decrease, and they are at least 0 and at most
the number of output rows. The elements of seq_starts are at least 0. The elements of block_table are at least 0 and
below num_blocks; those that no output row needs are not checked. Output rows of no sequence, and rows whose block lies
past the width of the block table, keep their content. The arguments batch_size and num_tokens may be -1, which stands
for the size of a tensor. In a graph of torch.compile the values of these two arguments are constants, so only a graph
that passes -1 serves all sizes.

**kv_cache_dtype** names the format in which a cache stores its elements (`multikv.formats` has the table). The
docstrings of convert_fp8 and indexer_k_quant_and_cache list the names that these two ops accept. All other ops with
this argument accept the following names:

| name | elements of the cache |
|---|---|
| `auto` | those of the input (for a gather: the output), bit for bit; the cache has the same dtype |
| `float32`, `float16`, `bfloat16` | as `auto`; the dtype of the cache must have this name |
| `fp8_e4m3fn`, `fp8_e5m2`, `fp8_e4m3fnuz`, `fp8_e5m2fnuz` | fp8 codes; the cache is uint8 or this torch.float8 dtype |
| `fp8`, `fp8_e4m3` | fp8 codes, in the e4m3 format of the cache's dtype; if that is uint8, in the *native e4m3* |

The *native e4m3* of a device is the format that its matrix units read: e4m3fnuz on gfx940, gfx941 and gfx942, e4m3fn on
all other GPUs and on CPUs.

**fp8.** `quantise(x, scale)` divides by the scale in float32, rounds to nearest even, and saturates to the largest
finite value. Infinities saturate, too; NaN becomes the code 0x7f (fnuz formats: 0x80). `dequantise(q, scale)` is
`float32(q) * scale`, rounded once to the dtype of the output. Scales are float32 tensors on the device of the op, so
that the host need not know them. They may be None for float formats, which do not read them. Where a cache has heads, a
scale has one element, or one per head. Sources: e4m3fn and e5m2 are defined by the OCP 8-bit Floating Point
Specification 1.0, the fnuz formats by Noune et al. 2022, "8-bit Numerical Formats for Deep Neural Networks".

**fp8_ds_mla** is the 656-byte entry of DeepSeek's sparse attention (source: FlashMLA and vLLM):

    byte  0                   512                 528                 656
          | latent vector     | scales            | rotary key        |
          | 512 e4m3 codes    | 4 float32         | 64 elements       |
          | 4 tiles of 128    | one for each tile | of 16 bits        |

The scale of a tile is `max(amax / M, 1e-4)` rounded up to a power of two, where M is 448 (e4m3fnuz: 224) and amax is
the largest magnitude of the tile. In amax, NaN is ignored and an infinity counts as the largest finite float32.
"""

import typing

from ..runtime import exports
from .attention import *
from .blocks import *
from .convert import *
from .gather import *
from .indexer import *
from .mla import *
from .mla_rope import *
from .moves import *
from .norm_rope import *
from .reshape_and_cache import *
from .rotate import *
from .slots import *
from .swap import *

if not typing.TYPE_CHECKING:  # type checkers take the names from the star imports
    __all__ = list(exports.public_names(globals()))
