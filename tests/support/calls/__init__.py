"""Good calls of every op, a module per family: functions that make the arguments by name, in the order of the schema.

Each family has a table CALLS of those that are run by the tests which are the same for all ops; here they are together.
GPU_CALLS are more of them, in which a tensor on a GPU meets one that is not.
"""

from __future__ import annotations

from tests.support.calls import attention, convert, gather, indexer, mla, reshape_and_cache, swap
from tests.support.calls.call import Call

_FAMILIES = (reshape_and_cache, mla, convert, gather, indexer, attention, swap)
CALLS = {name: Call(*call) for family in _FAMILIES for name, call in family.CALLS.items()}
GPU_CALLS = {name: Call(*call) for name, call in swap.GPU_CALLS.items()}
ONE_OF_EACH = {call.op: call for call in reversed(CALLS.values())}  # the first of each op
