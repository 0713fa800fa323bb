"""Reads the settings of multikv from environment variables. No other module reads the environment.

A variable that is set to the empty string counts as unset.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

GPU_PLATFORMS = ("cuda", "rocm")
PLATFORMS = ("auto", "cpu", *GPU_PLATFORMS)
SWAP_STRATEGIES = ("auto", "copy_engine", "kernel")  # the index of a name is its number in csrc/c_api.h


@dataclass(frozen=True)
class Settings:
    """Values of the environment variables, checked."""

    platform: str = "auto"  # MULTIKV_PLATFORM
    cpu_isa: str | None = None  # MULTIKV_CPU_ISA; None: the best instruction set of this CPU
    swap_strategy: str = "auto"  # MULTIKV_SWAP
    check_indices: bool = False  # MULTIKV_CHECK_INDICES
    vllm: bool = True  # MULTIKV_VLLM
    vllm_attention: bool = False  # MULTIKV_VLLM_ATTENTION

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Reads the variables.

        Raises:
            ImportError: a variable has an unknown value. The CPU library checks MULTIKV_CPU_ISA later.
        """
        return cls(
            platform=_choice(environment, "MULTIKV_PLATFORM", PLATFORMS, f"one of {', '.join(PLATFORMS)}"),
            check_indices=_choice(environment, "MULTIKV_CHECK_INDICES", ("0", "1"), "0 or 1") == "1",
            swap_strategy=_choice(environment, "MULTIKV_SWAP", SWAP_STRATEGIES, f"one of {', '.join(SWAP_STRATEGIES)}"),
            cpu_isa=environment.get("MULTIKV_CPU_ISA") or None,
            vllm=_choice(environment, "MULTIKV_VLLM", ("1", "0"), "0 or 1") == "1",
            vllm_attention=_choice(environment, "MULTIKV_VLLM_ATTENTION", ("0", "1"), "0 or 1") == "1",
        )


def _choice(environment: Mapping[str, str], variable: str, choices: tuple[str, ...], expected: str) -> str:
    value = environment.get(variable) or choices[0]
    if value not in choices:
        raise ImportError(f"{variable}: expected {expected}, got '{value}'")
    return value
