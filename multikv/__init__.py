"""KV-cache operations of LLM inference: one API and the same bytes on CUDA and CPU. ROCm has not run on hardware yet.

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

import typing as _typing

from .runtime import command as _command

_command.require_torch()

from . import platforms as platforms  # noqa: E402
from .runtime import explanations as _explanations  # noqa: E402
from .runtime import fake as _fake  # noqa: E402
from .runtime import loading as _loading  # noqa: E402

_loading.load()  # before the import of ops, which looks up the schemas that the CPU library registers
_fake.register()
_explanations.register_refusals()

from . import ops as ops  # noqa: E402
from .ops import *  # noqa: E402

if _typing.TYPE_CHECKING:
    from . import formats as formats
    from . import offload as offload
    from . import pool as pool
    from . import reference as reference
    from . import transfer as transfer
    from .offload import SwapCosts as SwapCosts
    from .offload import calibrate_swaps as calibrate_swaps
    from .offload import empty_pinned as empty_pinned
    from .offload import swap_costs as swap_costs
    from .pool import Batch as Batch
    from .pool import CacheStats as CacheStats
    from .pool import OutOfBlocks as OutOfBlocks
    from .pool import PagedKVCache as PagedKVCache
    from .pool import PagedMLACache as PagedMLACache
    from .pool import Sequence as Sequence

    __version__: str
else:  # type checkers take the names from the imports
    _MODULES = ("formats", "offload", "ops", "platforms", "pool", "reference", "transfer")
    _LATER = {
        **dict.fromkeys(("SwapCosts", "calibrate_swaps", "empty_pinned", "swap_costs"), "offload"),
        **dict.fromkeys(("Batch", "CacheStats", "OutOfBlocks", "PagedKVCache", "PagedMLACache", "Sequence"), "pool"),
    }
    __all__ = list(_LATER) + list(_MODULES) + ops.__all__

    def __getattr__(name):
        """Imports modules, and looks the version up, at the first use, so that `import multikv` is faster."""
        import importlib.metadata  # noqa: PLC0415

        if name in _MODULES:
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
        return sorted({*(name for name in globals() if name.startswith("__")), *__all__, "__version__"})
