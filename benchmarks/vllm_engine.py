"""vLLM's engine on a GPU with and without multikv: tokens, log-probabilities, kernels that ran, tokens per second.

    python -m benchmarks.vllm_engine --out benchmarks/results/<machine>_vllm.json

Needs vLLM with its compiled library. Each mode runs all cases in a process of its own: `vllm` leaves vLLM alone,
`multikv` serves the cache ops, and `attention` serves them and attends by paged_attention. Models are small and have
random weights (standard deviation 0.05). 16 prompts of 1 to 900 tokens are prefilled in chunks of 512 tokens, and each
generates 64 tokens greedily. The report says for each case whether tokens and log-probabilities are those of vLLM, bit
for bit. `--list` names the cases.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHILD_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}
MODES = {
    "vllm": {"MULTIKV_VLLM": "0"},
    "multikv": {},
    "attention": {"MULTIKV_VLLM_ATTENTION": "1"},
}
NUM_TOKENS, VOCABULARY = 64, 4096
LENGTHS = (1, 2, 7, 16, 33, 64, 100, 128, 200, 255, 300, 400, 512, 600, 777, 900)
LONG_LENGTHS = (8192,) * 4

# For each case: the model, the lengths of the prompts, and the options of the engine.
CASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "llama bf16": ("llama", LENGTHS, {}),
    "llama fp8": ("llama", LENGTHS, {"kv_cache_dtype": "fp8"}),
    "llama fp8, prompts of 8192": ("llama", LONG_LENGTHS, {"kv_cache_dtype": "fp8", "max_num_batched_tokens": 8192}),
    "MLA, TRITON_MLA": ("mla", LENGTHS, {"attention_backend": "TRITON_MLA"}),
    "MLA, FLASH_ATTN_MLA": ("mla", LENGTHS, {"attention_backend": "FLASH_ATTN_MLA"}),
    "llama, FLEX_ATTENTION": ("llama", LENGTHS, {"attention_backend": "FLEX_ATTENTION"}),
    "offload, blocks of 16": ("llama", LENGTHS, {"kv_offloading_size": 2.0, "block_size": 16}),
    "offload, blocks of 32": ("llama", LENGTHS, {"kv_offloading_size": 2.0, "block_size": 32}),
    "llama bf16, compiled, graphs": ("llama", LENGTHS, {"enforce_eager": False}),
    "MLA, compiled, graphs": ("mla", LENGTHS, {"attention_backend": "FLASH_ATTN_MLA", "enforce_eager": False}),
}
ATTENTION_CASES = ("llama bf16", "llama fp8")


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
    for name, model, config in (
        ("llama", LlamaForCausalLM, LlamaConfig(**sizes, num_attention_heads=16, num_key_value_heads=8)),
        ("mla", DeepseekV2ForCausalLM, DeepseekV2Config(**sizes, **mla)),
    ):
        with torch.device("cuda"):
            made = model(config)
        made.to(torch.bfloat16).save_pretrained(folder / name)


class Engine:
    """An engine for one case."""

    def __init__(self, folder: Path, name: str) -> None:
        """Makes the engine."""
        from vllm import LLM  # noqa: PLC0415

        model, self.lengths, options = CASES[name]
        base = {
            "dtype": "bfloat16",
            "enforce_eager": True,
            "skip_tokenizer_init": True,
            "kv_cache_memory_bytes": 1 << 30,
            "gpu_memory_utilization": 0.5,
            "max_model_len": 16384,
            "max_num_batched_tokens": 512,
            "max_num_seqs": 64,
            "enable_prefix_caching": "kv_offloading_size" in options,
            "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8, 16]},
        }
        self.offloads = "kv_offloading_size" in options
        if self.offloads:  # so few blocks that the prompts evict each other
            base["kv_cache_memory_bytes"] = 64 << 20
            base["max_model_len"] = 2048
        self.llm = LLM(str(folder / model), **(base | options))

    def generate(self, prompts: list[list[int]], num_tokens: int = NUM_TOKENS) -> list[Any]:
        """Returns for each prompt its tokens and the exact values of their log-probabilities."""
        from vllm import SamplingParams  # noqa: PLC0415

        parameters = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True, detokenize=False, logprobs=1)
        outputs = self.llm.generate([{"prompt_token_ids": x} for x in prompts], parameters, use_tqdm=False)
        results = [output.outputs[0] for output in outputs]
        return [
            [list(x.token_ids), [step[t].logprob.hex() for t, step in zip(x.token_ids, x.logprobs, strict=True)]]
            for x in results
        ]


def prompts_of(lengths: tuple[int, ...]) -> list[list[int]]:
    """Returns random prompts."""
    import random  # noqa: PLC0415

    source = random.Random(0)
    return [[source.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def kernels_of(run: Any) -> dict[str, int]:
    """Returns how often each kernel of a cache or of multikv ran; kernels of replayed graphs are included."""
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
    counts: collections.Counter[str] = collections.Counter()
    for event in profiler.events():
        if any(word in event.name for word in ("cache", "multikv", "swap_blocks", "concat_mla")):
            name = event.name.replace("(anonymous namespace)::", "").removeprefix("void ")
            counts[name.partition("(")[0].partition("<")[0]] += 1
    return dict(counts)


def run_case(folder: Path, name: str, mode: str) -> dict[str, Any]:
    """Runs one case in this process."""
    import torch  # noqa: PLC0415

    begun = time.perf_counter()
    engine = Engine(folder, name)
    prompts = prompts_of(engine.lengths)
    result: dict[str, Any] = {"seconds_to_start": time.perf_counter() - begun}
    engine.generate(prompts, 4)
    seconds = []
    for _ in range(2 if len(prompts[-1]) < 8192 else 1):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        result["outputs"] = engine.generate(prompts)
        seconds.append(time.perf_counter() - begun)
    tokens = NUM_TOKENS if len(prompts[-1]) < 8192 else NUM_TOKENS + len(prompts[-1])
    result["tokens_per_second"] = [round(len(prompts) * tokens / x, 1) for x in seconds]
    result["kernels"] = kernels_of(lambda: engine.generate(prompts, 4))
    if mode == "attention":  # the first prompts alone, and in a batch of 64
        many = prompts_of(tuple(LENGTHS[i % 16] for i in range(64)))
        together = engine.generate(many)
        result["alone_equal"] = [engine.generate([many[i]])[0] == together[i] for i in (4, 9, 15)]
    result["seconds"] = time.perf_counter() - begun
    with contextlib.suppress(Exception):  # an engine that remains takes memory, and no more
        engine.llm.llm_engine.engine_core.shutdown()
    return result


def run_mode(folder: Path, mode: str, names: list[str]) -> None:
    """Runs cases in this process, and writes a file for each."""
    import torch  # noqa: PLC0415

    for name in names:
        try:
            result = run_case(folder, name, mode)
        except Exception as error:  # the other cases still count
            import traceback  # noqa: PLC0415

            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"[:500]}
        (folder / f"{mode}-{list(CASES).index(name)}.json").write_text(json.dumps(result))
        shown = {key: value for key, value in result.items() if key != "outputs"}
        print("RESULT", mode, name, json.dumps(shown), flush=True)
        gc.collect()
        torch.cuda.empty_cache()


def summary_of(folder: Path, names: list[str], modes: list[str]) -> dict[str, Any]:
    """Compares the modes, and drops the outputs."""
    cases: dict[str, Any] = {}
    for name in names:
        results = {}
        for mode in modes:
            file = folder / f"{mode}-{list(CASES).index(name)}.json"
            if file.exists():
                results[mode] = json.loads(file.read_text())
        wanted = results.get("vllm", {}).get("outputs")
        for result in results.values():
            outputs = result.pop("outputs", None)
            if outputs is not None and wanted is not None:
                result["tokens_equal"] = [x[0] for x in outputs] == [x[0] for x in wanted]
                result["logprobs_equal"] = outputs == wanted
        cases[name] = results
    return cases


def wait(running: list[tuple[str, subprocess.Popen[bytes]]], seconds: float) -> None:
    """Waits for processes, and stops those that take longer."""
    end = time.monotonic() + seconds
    for mode, process in running:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            print(f"{mode}: stopped after {seconds} s", flush=True)


def main() -> None:
    """Runs all modes one after another, and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cases", default=",".join(str(i) for i in range(len(CASES))), help="numbers of cases")
    parser.add_argument("--modes", default="vllm,multikv,attention")
    parser.add_argument("--list", action="store_true", help="prints the cases and their numbers")
    parser.add_argument("--child", nargs=2, metavar=("MODE", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--parallel", action="store_true", help="all modes at once; the speeds then mean nothing")
    parser.add_argument("--seconds", type=float, default=3600, help="limit of each mode")
    options = parser.parse_args()
    names = [list(CASES)[int(i)] for i in options.cases.split(",")]
    if options.list:
        print(*(f"{i} {name}" for i, name in enumerate(CASES)), sep="\n")
        return
    if options.child:
        mode, folder = options.child
        run_mode(Path(folder), mode, [x for x in names if mode != "attention" or x in ATTENTION_CASES])
        return
    import torch  # noqa: PLC0415

    modes = options.modes.split(",")
    folder = Path(tempfile.mkdtemp())
    save_models(folder)
    running = []
    for mode in modes:
        command = [sys.executable, "-m", "benchmarks.vllm_engine", "--child", mode, str(folder)]
        environment = os.environ | CHILD_ENVIRONMENT | MODES[mode]
        running.append((mode, subprocess.Popen([*command, "--cases", options.cases], env=environment)))
        if not options.parallel or mode == modes[-1]:
            wait(running, options.seconds)
            running = []
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "vllm": "0.33.0",
        "modes_shared_the_gpu": options.parallel,
        "cases": summary_of(folder, names, modes),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
