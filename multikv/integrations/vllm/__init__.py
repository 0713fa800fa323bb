"""vLLM on multikv, through vLLM's own plugin mechanism: docs/integrations.md.

vLLM calls `register` in each of its processes, because multikv is an entry point of the group `vllm.general_plugins`.
Nothing of vLLM is changed on disk. These environment variables are read (an empty one counts as unset):

- `MULTIKV_VLLM` = `0` leaves vLLM alone. Default: `1`.
- `MULTIKV_VLLM_ATTENTION` = `1` replaces vLLM's attention by `paged_attention`: the backend FLASH_ATTN on a GPU and
  CPU_ATTN on a CPU. Default: `0`; on a CPU without vLLM's compiled library, CPU_ATTN is replaced anyway.
"""

from __future__ import annotations

import logging

from multikv.runtime.settings import Settings

from .cache_ops import NAMESPACE, Served, serve_cache_ops, stop_serving

__all__ = ["NAMESPACE", "TESTED_VERSIONS", "Served", "register", "serve_cache_ops", "splitting_ops", "stop_serving"]

TESTED_VERSIONS = ("0.33.0",)

_logger = logging.getLogger("vllm.multikv")  # vLLM configures the handlers of loggers below "vllm"


def register() -> str:
    """Makes vLLM use multikv's cache ops, and multikv's attention where the module's docstring says so.

    vLLM calls this function. Further calls are allowed.

    A version of vLLM that is not in TESTED_VERSIONS is served as well: each op whose schema is the expected one.

    Returns:
        The line that is logged: which ops are served, which are not and why, and which attention backends are
        multikv's. vLLM shows it only in processes that configure logging before they load plugins.
    """
    settings = Settings.from_environment()
    if not settings.vllm:
        line = "multikv leaves vLLM alone (MULTIKV_VLLM=0)"
    else:
        from . import platform  # noqa: PLC0415 (imports vLLM)

        served = platform.serve()
        line = _summary(platform.version(), served, platform.register_attention(opted_in=settings.vllm_attention))
    _logger.info("%s", line)
    return line


def splitting_ops() -> list[str]:
    """Returns the names of all ops of multikv for `compilation_config={"splitting_ops": ...}` of vLLM.

    A model that calls ops of multikv itself needs them if it is captured in piecewise CUDA graphs: vLLM then cuts the
    graph at each of these ops, and calls the ops between the captured pieces.

    Example:
        >>> config = CompilationConfig()
        >>> config.splitting_ops = [*config._attention_ops, *multikv.integrations.vllm.splitting_ops()]
    """
    from multikv import platforms  # noqa: PLC0415

    return [f"multikv::{name}" for name in platforms.op_names()]


def _summary(version: str, served: Served, attention: str) -> str:
    tested = "" if version in TESTED_VERSIONS else f" (not tested; tested: {', '.join(TESTED_VERSIONS)})"
    lines = [
        f"multikv serves {len(served.names)} cache ops of vLLM {version}{tested}: {', '.join(served.names) or '-'}"
    ]
    if served.refusals:
        lines.append("not served: " + "; ".join(f"{name}: {reason}" for name, reason in served.refusals.items()))
    return "; ".join([*lines, f"attention: {attention}"])
