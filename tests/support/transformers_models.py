"""Tiny models of Transformers with random weights, and calls of generate that do not depend on its version."""

from __future__ import annotations

import functools
import inspect

import torch
import transformers
from torch import Tensor

COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
WINDOW = 7
NUM_TOKENS = 16
HALF_SLIDING = ["sliding_attention", "full_attention"]
CONFIGURATIONS = {
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 256,
            "sliding_window": WINDOW,
            "layer_types": HALF_SLIDING,
            "attn_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 100,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            "head_dim": 32,
            "sliding_window": WINDOW,
            "layer_types": HALF_SLIDING,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
}


@functools.cache
def make_model(name: str, device: torch.device) -> transformers.PreTrainedModel:
    family, options = CONFIGURATIONS[name]
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**COMMON, **options)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().float()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("sinks"):
            torch.nn.init.normal_(parameter)
    return model.to(device)


def cache_argument(model: transformers.PreTrainedModel) -> str:
    """The name of the cache among the arguments of a model and of generate, which later versions renamed."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def mask_sizes_take_positions() -> bool:
    """Whether caches and masks get the positions of the queries, as in Transformers 5.0, rather than their number."""
    return "cache_position" in inspect.signature(transformers.Cache.get_mask_sizes).parameters


def generate(
    model: transformers.PreTrainedModel,
    attention: str,
    prompt: Tensor,
    cache: transformers.Cache | None = None,
    **options,
) -> tuple[Tensor, Tensor]:
    """Returns the new tokens, and the logits that they were chosen by if there are no beams."""
    model.set_attn_implementation(attention)
    if cache is not None:
        options[cache_argument(model)] = cache
    defaults = {
        "max_new_tokens": NUM_TOKENS,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    options.setdefault("attention_mask", torch.ones_like(prompt))
    found = model.generate(prompt, **(defaults | options))
    return found.sequences[:, prompt.size(1) :], torch.stack(found.logits)


def prompts(batch_size: int, length: int, device: torch.device) -> Tensor:
    return torch.randint(3, COMMON["vocab_size"], (batch_size, length)).to(device)


def left_padding(prompt: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The attention mask of prompts whose first counts[s] tokens are padding."""
    positions = torch.arange(prompt.size(1), device=prompt.device)
    return (positions >= torch.tensor(counts, device=prompt.device)[:, None]).long()
