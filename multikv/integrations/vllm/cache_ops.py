"""Registers multikv's kernels for the ops of vLLM's namespace `_C_cache_ops`."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch

import multikv  # noqa: F401 (loads the libraries)
from multikv.runtime.c_api import CpuLibrary, GpuLibrary
from multikv.runtime.process import PROCESS

NAMESPACE = "_C_cache_ops"


@dataclass
class Served:
    """Which ops of vLLM run multikv's kernels."""

    names: list[str] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)  # the name of an op: why it is not served


@functools.cache
def serve_cache_ops() -> Served:
    """Registers the kernels of all libraries that are loaded, and defines the ops that do not exist.

    Later calls do nothing and return the same result. An op whose schema differs from the expected one is left as it
    is. Kernels stay registered until `stop_serving`. The ops of vLLM's own library must have been registered before, or
    it would register its kernels over these. No other thread may call the ops meanwhile.
    """
    libraries = _libraries()
    served = Served()
    for name in sorted({*PROCESS.cpu.vllm_ops(), *_existing_names()}):
        reason = next(filter(None, (library.serve_vllm(name, _schema_of(name)) for library in libraries)), None)
        if reason is None:
            served.names.append(name)
        else:
            served.refusals[name] = reason
    return served


def stop_serving() -> None:
    """Takes back what `serve_cache_ops` has registered: the ops run the kernels that they had before.

    Ops that multikv has defined stay defined, without a kernel. CUDA graphs keep the kernels that they were captured
    with, and attention backends stay registered. `serve_cache_ops` and `register` serve again. No other thread may
    call the ops meanwhile.
    """
    for library in _libraries():
        library.stop_serving_vllm()
    serve_cache_ops.cache_clear()


def _libraries() -> list[CpuLibrary | GpuLibrary]:
    return [PROCESS.cpu] if PROCESS.gpu is None else [PROCESS.cpu, PROCESS.gpu]


def _existing_names() -> list[str]:
    prefix = f"{NAMESPACE}::"
    names = torch._C._dispatch_get_all_op_names()
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix) and "." not in name]


def _schema_of(name: str) -> str | None:
    """Returns the schema of an op as PyTorch prints it, or None if the op does not exist."""
    packet = getattr(getattr(torch.ops, NAMESPACE), name, None)
    return None if packet is None else str(packet.default._schema)
