"""Paged caches for models in plain PyTorch: sequences, prefix sharing, copy on write, and a host tier.

The classes are Python over the ops; they have no kernels of their own. docs/quickstart.md uses them in a model, and
docs/concepts.md explains them. Each module imports only modules above it:

- `errors` has the exception of a full cache.
- `arguments` checks the types of arguments.
- `names` hashes the tokens of blocks.
- `blocks` counts the references of the blocks of one memory, and evicts.
- `sequence` has the tokens and blocks of one conversation.
- `batch` has the tensors of one step, and their buffers.
- `host` has the host tier and its stream.
- `moves` plans what moves between the device and the host.
- `ledger` does the bookkeeping behind the public methods.
- `paged` has the public methods that all caches share.
- `memory` reads the arguments of caches.
- `kv` and `mla` have the caches.
"""

from .batch import Batch
from .errors import OutOfBlocks
from .kv import PagedKVCache
from .mla import PagedMLACache
from .paged import CacheStats
from .sequence import Sequence

__all__ = ["Batch", "CacheStats", "OutOfBlocks", "PagedKVCache", "PagedMLACache", "Sequence"]
