"""The definition of every op in plain PyTorch, slow and simple. Tests compare all backends with it.

Results must be equal byte for byte, except those of attention, for which the tests have an error bound.

The functions take the arguments of the ops, which `multikv.ops` documents, as tensors of any strides on any device, and
compute on the CPU. They assume that arguments are valid, and check only indices. Two arguments are additional, each for
the functions that need it:

- `bad_indices`: "raise" raises IndexError before anything is written, as a CPU op does. "skip" skips tokens and rows
  with bad indices, as a GPU op does.
- `e4m3_of_bytes`: the native e4m3 of the device whose op is compared, "e4m3fn" or "e4m3fnuz". It is the format of a
  uint8 cache if kv_cache_dtype does not name one.

Letters in shapes: T tokens, H heads, D head size, N blocks, B block size, S sequences. slot = block * B + offset.

Example:
    >>> from multikv import reference
    >>> cache = torch.randn(64, 16, 8, 128, dtype=torch.bfloat16)
    >>> codes, expected = torch.empty(2, *cache.shape, dtype=torch.uint8)
    >>> multikv.convert_fp8(codes, cache, 0.02, "fp8_e4m3")
    >>> reference.convert_fp8(expected, cache, 0.02, "fp8_e4m3")
    >>> torch.equal(codes, expected)
    True
"""

import typing

from ..runtime import exports
from .attention import *
from .blocks import *
from .convert import *
from .formats import *
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
