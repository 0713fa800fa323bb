"""Good calls of every op, a module per family: functions that make the arguments by name, in the order of the schema.

Each family has a table CALLS of those that are run by the tests which are the same for all ops; here they are together.
GPU_CALLS are more of them, in which a tensor on a GPU meets one that is not.
"""

from __future__ import annotations

from tests.support.calls import (
    attention,
    blocks,
    convert,
    gather,
    gather_kv,
    indexer,
    mla,
    moves,
    norm_rope,
    reshape_and_cache,
    rotate,
    slots,
    swap,
)
from tests.support.calls.call import Call

_FAMILIES = (
    reshape_and_cache,
    mla,
    convert,
    gather,
    gather_kv,
    indexer,
    swap,
    blocks,
    moves,
    slots,
    rotate,
    norm_rope,
    attention,
)
CALLS = {name: Call(*call) for family in _FAMILIES for name, call in family.CALLS.items()}
GPU_CALLS = {name: Call(*call) for family in (swap, blocks, moves) for name, call in family.GPU_CALLS.items()}
ONE_OF_EACH = {call.op: call for call in reversed(CALLS.values())}  # the first of each op
# On a GPU these calls are errors unless tensors are in pinned memory.
PINNED_ONLY = ("upconvert-host", *moves.PINNED_ONLY)
