"""The vectorised twin of multikv.reference: the same functions, in PyTorch's index operations instead of Python loops.

It is the oracle of large calls, for which the plain reference takes seconds. `unit/test_vectorised.py` holds the two
equal, on all 16-bit floats and on random calls of every op. Positions of a sequence are assumed to be below 2^62.
"""

from __future__ import annotations

from multikv.reference import (  # noqa: F401  these have no loops over elements
    concat_mla_q,
    convert_fp8,
    merge_attn_states,
    paged_attention,
    paged_attention_v1,
    paged_attention_v2,
    rms_norm,
    rotary_embedding,
    rotate_cached_keys,
    swap_blocks_batch,
)
from tests.support.vectorised.blocks import *
from tests.support.vectorised.gathers import *
from tests.support.vectorised.moves import *
from tests.support.vectorised.norm_rope import *
from tests.support.vectorised.numbers import decode_fp8, encode_fp8  # noqa: F401
from tests.support.vectorised.slots import *
from tests.support.vectorised.swaps import *
from tests.support.vectorised.writes import *
