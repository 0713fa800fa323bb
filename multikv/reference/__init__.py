"""The meaning of every op in plain PyTorch: slow and simple. Tests compare all backends with it, byte for byte.

The functions have the signatures of the ops, write into the tensors that they are given, and take tensors of any
strides on any device; they compute on the CPU. They assume valid arguments and check only indices, as the additional
argument bad_indices says: "raise" does what a CPU does (IndexError before anything is written), "skip" what a GPU does.
The additional argument e4m3_of_bytes is the native e4m3 of the device: what a uint8 cache holds if no name says it.

Letters in shapes: T tokens, H heads, D head size, N blocks, B block size, S sequences. slot = block * B + offset.
"""

import typing

from ..runtime import exports
from .convert import *
from .formats import *
from .gather import *
from .indexer import *
from .mla import *
from .mla_rope import *
from .reshape_and_cache import *
from .swap import *

if not typing.TYPE_CHECKING:  # type checkers take the names from the star imports
    __all__ = list(exports.public_names(globals()))
