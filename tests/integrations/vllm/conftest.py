"""vLLM's engine, in the process of the tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_TARGET_DEVICE": "cpu",
}
os.environ.update(ENVIRONMENT)  # before vLLM is imported


@pytest.fixture(scope="session")
def engine() -> Callable[..., Any]:
    """Makes an engine for the model of a folder."""
    from vllm import LLM  # noqa: PLC0415 (after the environment is set)

    def make(folder: Path, **options: Any) -> LLM:
        return LLM(
            str(folder),
            dtype="float32",
            enforce_eager=True,
            skip_tokenizer_init=True,
            kv_cache_memory_bytes=16 << 20,
            max_model_len=256,
            compilation_config={"custom_ops": ["none"]},  # vLLM's own are in its compiled library
            **({"block_size": 32} | options),
        )

    return make
