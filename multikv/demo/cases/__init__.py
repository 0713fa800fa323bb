"""Random inputs for the ops, and plain copies to compare times with, for `python -m multikv` and the benchmarks.

Each family of ops has a module with its cases. For each op except swap_blocks_batch, the module has a function of the
same name that makes a Workload. The values of a Workload are random. So is the order of its blocks, but consecutive
tokens are neighbours within a block. On the device `meta` the function allocates nothing, and the Workload says how
many bytes the op moves. The demo runs the cases in CASES.
"""

import typing

from multikv.runtime import exports

from . import attention as _attention
from . import blocks as _blocks
from . import convert as _convert
from . import gather as _gather
from . import indexer as _indexer
from . import mla as _mla
from . import mla_rope as _mla_rope
from . import moves as _moves
from . import norm_rope as _norm_rope
from . import reshape_and_cache as _reshape_and_cache
from . import rotate as _rotate
from . import slots as _slots
from . import swap as _swap
from .attention import *
from .blocks import *
from .case import Case as Case
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
from .values import CACHE_DTYPES as CACHE_DTYPES
from .workload import *

CASES: list[Case] = [
    case
    for family in (
        _reshape_and_cache,
        _mla,
        _mla_rope,
        _convert,
        _gather,
        _indexer,
        _swap,
        _blocks,
        _moves,
        _slots,
        _rotate,
        _norm_rope,
        _attention,
    )
    for case in family.CASES
]

if not typing.TYPE_CHECKING:  # type checkers take the names from the imports above
    __all__ = list(exports.public_names(globals()))
