"""KV-cache operations of LLM inference: one API and the same bytes on CUDA, ROCm and CPU.

Importing the package detects the GPUs of this host and loads the CPU library and the GPU library that matches them.
`multikv.platforms.report()` says which libraries are loaded, and why the others are not. Each op is a function of this
package and an op of PyTorch, `torch.ops.multikv.<name>`. `multikv.ops` describes what all ops have in common, and the
formats of caches.

Example:
    >>> import torch, multikv
    >>> key, value = torch.randn(2, 100, 8, 128, dtype=torch.bfloat16)  # 100 tokens, 8 heads of 128
    >>> key_cache, value_cache = torch.zeros(2, 64, 16, 8, 128, dtype=torch.uint8)  # 64 blocks of 16 slots, fp8
    >>> slots, scale = torch.randperm(64 * 16)[:100], torch.tensor([0.02])
    >>> multikv.reshape_and_cache_flash(key, value, key_cache, value_cache, slots, "fp8_e4m3", scale, scale)
"""

import typing

from . import platforms as platforms
from .runtime import explanations, fake, loading

loading.load()  # before the import of ops, which looks up the schemas that the CPU library registers
fake.register()
explanations.register_refusals()

from . import ops  # noqa: E402
from .ops import *  # noqa: E402

if typing.TYPE_CHECKING:
    from . import offload as offload
    from . import pool as pool
    from . import transfer as transfer
    from .offload import calibrate_swaps as calibrate_swaps
    from .offload import empty_pinned as empty_pinned
    from .pool import Batch as Batch
    from .pool import CacheStats as CacheStats
    from .pool import OutOfBlocks as OutOfBlocks
    from .pool import PagedKVCache as PagedKVCache
    from .pool import PagedMLACache as PagedMLACache
    from .pool import Sequence as Sequence

    __version__: str
else:  # type checkers take the names from the imports
    _LATER = {"calibrate_swaps": "offload", "empty_pinned": "offload"} | dict.fromkeys(
        ["Batch", "CacheStats", "OutOfBlocks", "PagedKVCache", "PagedMLACache", "Sequence"], "pool"
    )
    __all__ = ["platforms"] + list(_LATER) + ops.__all__

    def __getattr__(name):
        """Imports modules, and looks the version up, at the first use, so that `import multikv` is faster."""
        import importlib.metadata  # noqa: PLC0415

        if name in ("offload", "pool", "transfer"):
            value = importlib.import_module(f"multikv.{name}")
        elif name in _LATER:
            value = getattr(importlib.import_module(f"multikv.{_LATER[name]}"), name)
        elif name == "__version__":
            try:
                value = importlib.metadata.version("multikv")
            except importlib.metadata.PackageNotFoundError:  # a source tree on the path, not installed
                value = "0+unknown"
        else:
            raise AttributeError(f"module 'multikv' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__, "__version__", "offload", "pool", "transfer"})
