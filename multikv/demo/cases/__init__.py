"""Random inputs for each op, and plain copies to compare times with, for `python -m multikv` and the benchmarks.

Each module has the cases of one family of ops. For each op it has a function of the same name that makes a Workload.
The values of a Workload are random. So is the order of its blocks, but consecutive tokens are neighbours within a
block. On the device `meta` the function allocates nothing, and the Workload says how many bytes the op moves. The demo
runs the cases in CASES.
"""

import typing

from multikv.runtime import exports

from . import attention as _attention
from . import convert as _convert
from . import gather as _gather
from . import indexer as _indexer
from . import mla as _mla
from . import mla_rope as _mla_rope
from . import reshape_and_cache as _reshape_and_cache
from . import swap as _swap
from .attention import *
from .case import Case as Case
from .convert import *
from .gather import *
from .indexer import *
from .mla import *
from .mla_rope import *
from .reshape_and_cache import *
from .swap import *
from .values import CACHE_DTYPES as CACHE_DTYPES
from .workload import *

CASES: list[Case] = [
    case
    for family in (_reshape_and_cache, _mla, _mla_rope, _convert, _gather, _indexer, _attention, _swap)
    for case in family.CASES
]

if not typing.TYPE_CHECKING:  # type checkers take the names from the imports above
    __all__ = list(exports.public_names(globals()))
