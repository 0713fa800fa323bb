"""Runs vLLM's engine with multikv's cache ops. On a CPU without vLLM's compiled library, attention is multikv's, too.

    pip install multikv[vllm]
    python examples/vllm_engine.py                    # a GPU if there is one
    python examples/vllm_engine.py --device cpu --kv-cache-dtype fp8

The model is a small Llama with random weights, so nothing is downloaded. The tokens are compared with those of
Transformers' own generate. They may differ with an fp8 cache, or on a GPU where two tokens are almost equally likely.
"""

import argparse
import os
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
parser.add_argument("--kv-cache-dtype", default="auto")
parser.add_argument("--tokens", type=int, default=16)
options = parser.parse_args()
if options.device == "cpu":  # vLLM reads these when it is imported
    os.environ |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_CI_ENV": "1"}
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams  # noqa: E402

import multikv.integrations.vllm  # noqa: E402

torch.manual_seed(0)
sizes = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.05)).eval()
folder = tempfile.mkdtemp()
model.save_pretrained(folder)
llm = LLM(
    folder,
    dtype="float32" if options.device == "cpu" else "bfloat16",
    kv_cache_dtype=options.kv_cache_dtype,
    kv_cache_memory_bytes=64 << 20,
    block_size=32,
    max_model_len=1024,
    enforce_eager=True,
    skip_tokenizer_init=True,
    compilation_config={"custom_ops": ["none"]} if options.device == "cpu" else {},
)
print(multikv.integrations.vllm.register())  # vLLM has called it; it says what is served

prompts = [torch.randint(1, 512, (length,)).tolist() for length in (1, 20, 300)]
parameters = SamplingParams(max_tokens=options.tokens, temperature=0, ignore_eos=True, detokenize=False)
for prompt, output in zip(prompts, llm.generate([{"prompt_token_ids": p} for p in prompts], parameters), strict=True):
    tokens = list(output.outputs[0].token_ids)
    inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.int64)}
    expected = model.generate(**inputs, max_new_tokens=options.tokens, do_sample=False, eos_token_id=None)
    print(f"prompt of {len(prompt)} tokens: {tokens}, equal: {tokens == expected[0, len(prompt) :].tolist()}")
