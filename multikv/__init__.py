"""KV-cache operations of LLM inference: one API and the same bytes on CUDA, ROCm and CPU.

Importing finds out which host this is and loads the libraries that serve it; `multikv.platforms.report()` tells.
The ops are also `torch.ops.multikv.<name>`.
"""

from importlib.metadata import PackageNotFoundError, version

from . import platforms

platforms.load()

from . import _fake  # noqa: E402,F401  needs the schemas that load() registered
from .ops import cp_gather_cache, reshape_and_cache_flash  # noqa: E402

try:
    __version__ = version("multikv")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

__all__ = ["cp_gather_cache", "platforms", "reshape_and_cache_flash"]
