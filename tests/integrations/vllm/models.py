"""Tiny models with random weights, and what Transformers generates with them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

VOCABULARY, NUM_LAYERS, MAX_TOKENS = 512, 2, 12
PROMPT_LENGTHS = (1, 7, 33, 200)

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,
}
_MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES)),
    # Every second layer sees 48 keys; scores are bounded, and head_size is not hidden_size / num_heads.
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**_SIZES, head_dim=64, sliding_window=48, attn_logit_softcapping=2.0, query_pre_attn_scalar=4)
    ),
    # Has ALiBi.
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=VOCABULARY, hidden_size=128, n_layer=NUM_LAYERS, n_head=4, initializer_range=0.05)
    ),
}


def save(name: str, folder: Path) -> PreTrainedModel:
    """Makes a model whose attention matters to its logits, and saves it."""
    torch.manual_seed(0)
    model = _MODELS[name]().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if any(part in parameter_name for part in ("q_proj", "k_proj", "v_proj", "o_proj", "query_key_value")):
                parameter.mul_(3)
    model.save_pretrained(folder)
    model.set_attn_implementation("eager")  # "sdpa" ignores softcap
    return model


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


@torch.no_grad()
def generate(model: PreTrainedModel, prompt: list[int]) -> tuple[list[int], float]:
    """Returns the tokens that are most likely, and by how much the closest of them won, in logits."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.cat(output.logits).topk(2).values
    return output.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).min().item()


def _attend_to_fp8(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: object
) -> tuple[Tensor, None]:
    key, value = (x.to(torch.float8_e4m3fn).to(x.dtype) for x in (key, value))
    return sdpa_attention_forward(module, query, key, value, mask, **options)


def round_to_fp8(model: PreTrainedModel) -> None:
    """Makes the model attend to keys and values that are rounded to e4m3."""
    AttentionInterface.register("sdpa_fp8", _attend_to_fp8)
    AttentionMaskInterface.register("sdpa_fp8", sdpa_mask)
    model.set_attn_implementation("sdpa_fp8")
