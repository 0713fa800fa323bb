"""The cases of `benchmarks.vllm_engine`: models, prompts, options of the engine, and modes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCABULARY = 4096
MODES = {
    "vllm": {"MULTIKV_VLLM": "0"},
    "multikv": {},
    "attention": {"MULTIKV_VLLM_ATTENTION": "1"},
}
LENGTHS = (1, 2, 7, 16, 33, 64, 100, 128, 200, 255, 300, 400, 512, 600, 777, 900)

# Options of each engine, which those of a case replace.
ENGINE: dict[str, Any] = {
    "dtype": "bfloat16",
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "kv_cache_memory_bytes": 512 << 20,
    "gpu_memory_utilization": 0.02,  # vLLM refuses to start if less than this part of the memory is free
    "max_model_len": 16384,
    "max_num_batched_tokens": 512,
    "max_num_seqs": 64,
    "enable_prefix_caching": False,
    "kernel_config": {"enable_flashinfer_autotune": False},
}


@dataclass(frozen=True)
class Case:
    """One engine, and what it generates."""

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = LENGTHS  # of the prompts
    num_tokens: int = 64  # the number of tokens that each prompt generates
    modes: tuple[str, ...] = ("vllm", "multikv")
    one_by_one: bool = False  # the next prompt is sent when the one before is done
    counts_prompts: bool = False  # tokens per second include the tokens of the prompts
    compiles: bool = False  # the first mode starts alone, so that the others find the compiled code


def _offload(block_size: int) -> Case:
    """A case whose prompts are found in the CPU's memory: the GPU's holds three of the eight.

    The prompts are sent one by one, because otherwise the arrival of blocks would decide which prompts form a batch.
    """
    options = {
        "kv_offloading_size": 1.0,
        "block_size": block_size,
        "kv_cache_memory_bytes": 104 << 20,
        "max_model_len": 8192,
        "max_num_batched_tokens": 4096,
        "enable_prefix_caching": True,
    }
    return Case("llama", options, (4096,) * 8, 4, one_by_one=True, counts_prompts=True)


_ALL = tuple(MODES)
_LONG: dict[str, Any] = {"lengths": (8192,) * 4, "num_tokens": 4, "counts_prompts": True}
_SIZES = {"cudagraph_capture_sizes": [*range(1, 17), 64]}
_GRAPHS = {"enforce_eager": False, "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"} | _SIZES}
_COMPILED = {"enforce_eager": False, "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 64]}}
_FLASH_MLA = {"attention_backend": "FLASH_ATTN_MLA"}

CASES = {
    "llama, bf16": Case("llama", modes=_ALL),
    "llama, fp8": Case("llama", {"kv_cache_dtype": "fp8"}, modes=_ALL),
    "llama, bf16, graphs": Case("llama", _GRAPHS, modes=_ALL),
    "llama, bf16, compiled, graphs": Case("llama", _COMPILED, modes=_ALL, compiles=True),
    "llama, fp8, prompts of 8192": Case(
        "llama", {"kv_cache_dtype": "fp8", "max_num_batched_tokens": 8192}, modes=_ALL, **_LONG
    ),
    "llama, FLEX_ATTENTION": Case("llama", {"attention_backend": "FLEX_ATTENTION"}, compiles=True),
    "MLA, TRITON_MLA": Case("mla", {"attention_backend": "TRITON_MLA"}),
    "MLA, FLASH_ATTN_MLA": Case("mla", _FLASH_MLA),
    "MLA, prompts of 8192, chunks of 2048": Case("mla", _FLASH_MLA | {"max_num_batched_tokens": 2048}, **_LONG),
    "MLA, compiled, graphs": Case("mla", _FLASH_MLA | _COMPILED, compiles=True),
    "offload, blocks of 16": _offload(16),
    "offload, blocks of 32": _offload(32),
}


def prompts_of(lengths: tuple[int, ...], seed: int) -> list[list[int]]:
    """Returns random prompts."""
    import random  # noqa: PLC0415

    source = random.Random(seed)
    return [[source.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def save_models(folder: Path) -> None:
    """Saves the models, for all processes."""
    import torch  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        DeepseekV2Config,
        DeepseekV2ForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
    )

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "max_position_embeddings": 16384,
        "initializer_range": 0.05,
    }
    mla = {
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "first_k_dense_replace": 4,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=16, num_key_value_heads=8)).to(
        torch.bfloat16
    ).save_pretrained(folder / "llama")
    DeepseekV2ForCausalLM(DeepseekV2Config(**sizes, **mla)).to(torch.bfloat16).save_pretrained(folder / "mla")
