"""What vLLM's platform of this process needs: cache ops, attention, and on a CPU the ops of its compiled library."""

from __future__ import annotations

import torch
import vllm
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

import multikv
from multikv import platforms
from multikv.runtime.process import PROCESS

from .cache_ops import Served, serve_cache_ops

_registrations: list[torch.library.Library] = []  # keep the Python kernels registered


def version() -> str:
    """Returns the version of vLLM."""
    return str(vllm.__version__)


def serve() -> Served:
    """Registers multikv's kernels after those of vLLM's library, if multikv has a library for vLLM's platform."""
    # On a GPU platform without a GPU library of multikv, the CPU kernels must not be registered either: their
    # swap_blocks_batch would get addresses of a GPU, which it copies only with a GPU library.
    if not current_platform.is_cpu() and PROCESS.gpu is None:
        return Served(refusals={"all ops": f"no multikv library serves this GPU ({_reasons()})"})
    import vllm._custom_ops  # noqa: F401, PLC0415 (loads vLLM's library, if there is one)

    if current_platform.is_cpu():
        _define_cpu_ops()
    return serve_cache_ops()


def register_attention(*, opted_in: bool) -> str:
    """Registers the attention backend where it is wanted, and returns the names to log.

    The name CUSTOM is always registered. It is not logged where CPU_ATTN is multikv's.

    Args:
        opted_in: whether it replaces the platform's default backend even if vLLM has one of its own.
    """
    module = f"{__package__}.attention"
    register_backend(AttentionBackendEnum.CUSTOM, f"{module}.PagedAttentionBackend")
    if current_platform.is_cpu():
        if opted_in or not hasattr(torch.ops._C, "cpu_attention_with_kv_cache"):
            register_backend(AttentionBackendEnum.CPU_ATTN, f"{module}.CpuPagedAttentionBackend")
            return "CPU_ATTN"
    elif opted_in and PROCESS.gpu is not None:
        register_backend(AttentionBackendEnum.FLASH_ATTN, f"{module}.PagedAttentionBackend")
        return "CUSTOM, FLASH_ATTN"
    return "CUSTOM"


def _reasons() -> str:
    return "; ".join(f"{library.name}: {library.reason}" for library in platforms.libraries() if library.name != "cpu")


def _define_cpu_ops() -> None:
    """Defines the ops that vLLM's CPU worker calls, except those that vLLM's compiled library has defined."""
    kernels = {
        "init_cpu_memory_env(int[] nodes) -> ()": _init_cpu_memory_env,
        "greedy_argmax(Tensor logits) -> Tensor": _greedy_argmax,
        "compute_slot_mapping_kernel_impl(Tensor query_start_loc, Tensor positions, Tensor block_table, "
        "Tensor(a!) slot_mapping, int block_size) -> ()": _compute_slot_mapping,
    }
    library = torch.library.Library("_C", "FRAGMENT")
    for schema, kernel in kernels.items():
        name = schema.partition("(")[0]
        if not hasattr(torch.ops._C, name):
            library.define(schema)
            library.impl(name, kernel, "CompositeExplicitAutograd")
    _registrations.append(library)


def _init_cpu_memory_env(nodes: list[int]) -> None:
    """Does nothing: the operating system places the memory. The same op of vLLM's library binds it to NUMA nodes."""


def _greedy_argmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


def _compute_slot_mapping(
    query_start_loc: torch.Tensor,
    positions: torch.Tensor,
    block_table: torch.Tensor,
    slot_mapping: torch.Tensor,
    block_size: int,
) -> None:
    slots, padding = slot_mapping.tensor_split([positions.size(0)])
    multikv.compute_slot_mapping([block_table], query_start_loc, positions, [slots], [block_size])
    padding.fill_(-1)
