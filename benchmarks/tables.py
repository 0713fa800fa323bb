"""Writes the tables of README.md and docs/ that show committed results. No number in them is typed by hand.

Usage: python -m benchmarks.tables [--check]

A table stands between the lines `<!-- table: NAME -->` and `<!-- end of table -->` of a Markdown file. --check changes
nothing, and fails if a table is not what its results say.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/speed.md")
H100 = "nvidia-h100_blocks-and-moves_torch-2.11.0_2026-11-26"
ATTENTION = "nvidia-h100_attention_torch-2.11.0_2026-11-26"
H100_NORM_ROPE = "nvidia-h100_norm-rope_torch-2.11.0_2026-11-26"
H200 = "nvidia-h200_torch-2.11.0_2026-11-21"
H200_SWAPS = "nvidia-h200_swaps_torch-2.11.0_2026-11-21"
AVX2 = "amd-epyc-avx2_1-thread_torch-2.13.0_2026-11-26"
TRANSFER = "nvidia-h100-x2_transfer_torch-2.11.0_2026-11-26"
EPYC_1, EPYC_2 = (f"amd-epyc-avx512_{n}_torch-2.13.0_2026-11-21" for n in ("1-thread", "2-threads"))

Row = dict[str, Any]


class Key(NamedTuple):
    """Names a case."""

    op: str
    case: str


@cache
def results(file: str) -> dict[Key, list[Row]]:
    """Returns the rows of a file by case: that of multikv, and those of PyTorch."""
    rows: dict[Key, list[Row]] = {}
    for row in json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text())["results"]:
        rows.setdefault(Key(row["op"], row["case"]), []).append(row)
    return rows


def ours(file: str, key: Key) -> Row:
    """Returns multikv's row."""
    (row,) = [row for row in results(file)[key] if row["contender"] == "multikv"]
    return row


def best_of_torch(file: str, key: Key) -> Row | None:
    """Returns the row of the fastest way to do the same with PyTorch."""
    others = [row for row in results(file)[key] if row["contender"] != "multikv" and row["device_us"]]
    return min(others, key=lambda row: row["device_us"], default=None)


def microseconds(value: float) -> str:
    """Formats a time in microseconds with three digits or more."""
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def three_digits(value: float) -> str:
    """Formats a time in microseconds with three digits."""
    return f"{value:.1f}" if 10 <= value < 100 else microseconds(value)


def percent(share: float) -> str:
    """Formats a share in %."""
    return f"{100 * share:.0f}"


def markdown(head: str, rows: Iterable[Iterable[str]]) -> str:
    """Returns a table. A cell of the head that ends with ":" is a column of numbers."""
    names = head.split(" | ")
    rule = "|".join("---:" if name.endswith(":") else "---" for name in names)
    lines = [" | ".join(name.rstrip(":") for name in names), *map(" | ".join, rows)]
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def once(names: Iterable[str]) -> list[str]:
    """Returns the names in backquotes, and "" for a name that repeats the one before."""
    listed = list(names)
    return [f"`{name}`" if i == 0 or listed[i - 1] != name else "" for i, name in enumerate(listed)]


GPU_CASES = [
    Key(op, case)
    for op, cases in {
        "reshape_and_cache_flash": ("NHD/bf16/T=1", "NHD/bf16/T=131072", "HND/bf16/T=131072")
        + ("NHD/fp8_e4m3/T=131072", "HND/fp8_e4m3/T=131072"),
        "reshape_and_cache": ("packed/bf16/T=1", "packed/bf16/T=131072", "packed/fp8_e4m3/T=131072"),
        "concat_and_cache_mla": ("bf16/T=1", "bf16/T=131072", "fp8_e4m3/T=131072", "fp8_ds_mla/T=131072"),
        "concat_and_cache_mla_rope_fused": ("16-heads/bf16/T=131072", "16-heads/fp8_e4m3/T=131072")
        + ("128-heads/bf16/T=16384",),
        "concat_and_cache_mla_grouped": ("4-layers/bf16/T=16384",),
        "concat_mla_q": ("128-heads/T=16384",),
        "convert_fp8": ("bf16-to-fp8_e4m3/2^29", "fp8_e4m3-to-bf16/2^29"),
        "cp_gather_cache": ("bf16/1x128", "bf16/256x512"),
        "gather_and_maybe_dequant_cache": ("fp8_e4m3/256x512",),
        "cp_gather_and_upconvert_fp8_kv_cache": ("256x512",),
        "indexer_k_quant_and_cache": ("ue8m0/T=131072",),
        "cp_gather_indexer_k_quant_cache": ("256x512",),
    }.items()
    for case in cases
]


ATTENTION_CASES = [
    Key(op, case)
    for op, cases in {
        "paged_attention": tuple(
            f"llama-8b/{dtype}/{size}"
            for dtype in ("bf16", "fp8_e4m3")
            for size in ("1x1024", "1x8192", "1x131072", "16x4096", "64x2048", "256x1024")
        )
        + ("llama-8b/bf16/4x2048/q=2048", "llama-8b/bf16/1x8192/q=8192"),
        "merge_attn_states": ("bf16/T=16384",),
    }.items()
    for case in cases
]


def attention() -> str:
    """Returns the table of attention on a GPU."""
    return gpu(ATTENTION_CASES, ATTENTION)


NEWER_GPU_CASES = [
    Key(op, case)
    for op, cases in {
        "gather_kv_cache": ("NHD/bf16/256x512", "NHD/fp8_e4m3/256x512", "packed/bf16/256x512"),
        "rotate_cached_keys": ("bf16/T=131072", "fp8_e4m3/T=131072"),
        "compute_slot_mapping": ("1-groups/1x8192", "4-groups/32x256"),
        "copy_blocks_layers": ("NHD/32x2x1024",),
        "zero_blocks": ("NHD/32x2x1024",),
        "checksum_blocks": ("NHD/32x2x1024", "HND/32x2x1024"),
        "pack_layers": ("d2d/NHD-to-HND-64/32x2x2048", "host/4K-pieces/32x2x2048"),
        "unpack_layers": ("d2d/NHD-to-HND-64/32x2x2048", "host/4K-pieces/32x2x2048"),
        "move_tokens": ("2K/64x8192", "256B/64x16384"),
        "compact_cache": ("half/16x2048",),
    }.items()
    for case in cases
]


def newer_gpu() -> str:
    """Returns the table of the ops for blocks and tokens."""
    return gpu(NEWER_GPU_CASES, H100)


def norm_rope_gpu() -> str:
    """Returns the table of qk_norm_rope_cache: times, and in brackets the times that the targets allow."""
    rows = []
    for model, name in (
        ("llama-8b", "32 + 8 heads"),
        ("qwen3-30b", "32 + 4 heads, norms"),
        ("llama-70b-tp8", "8 + 1 heads"),
    ):
        for dtype in ("bf16", "fp8_e4m3"):
            cells = []
            for tokens in (1, 32, 256, 2048, 16384):
                row = ours(H100_NORM_ROPE, Key("qk_norm_rope_cache", f"{model}/{dtype}/T={tokens}"))
                allowed = allowed_us(row["copy_us"], tokens, model == "qwen3-30b", dtype == "bf16")
                us = three_digits(row["device_us"])
                us = us if row["device_us"] <= allowed else f"**{us}**"
                cells.append(f"{us} ({three_digits(allowed)})")
            rows.append((f"{name}, {dtype}", *cells))
    return markdown("heads, cache | 1 token: | 32: | 256: | 2,048: | 16,384:", rows)


def allowed_us(copy_us: float, tokens: int, has_norms: bool, is_float: bool) -> float:
    """Returns the time that the target of qk_norm_rope_cache allows, from the time of a copy of as many bytes."""
    if tokens <= 256:
        return copy_us + (1.2 if has_norms else 1.0)
    if tokens <= 2048:
        return copy_us / 0.88
    return copy_us / (0.90 if not is_float else 0.92 if has_norms else 0.93)


NORM_ROPE_KINDS = [
    Key(op, case)
    for op, cases in {
        "qk_norm_rope_cache": tuple(
            f"{kind}/bf16/T=16384"
            for kind in ("gptj", "float32-table", "half-rotated", "packed", "after-rope", "all-heads")
        ),
        "rms_norm": ("1x4096", "256x4096", "16384x4096", "131072x128"),
        "rotary_embedding": tuple(f"32+8-heads/T={tokens}" for tokens in (1, 256, 2048, 16384)),
    }.items()
    for case in cases
]


def norm_rope_kinds() -> str:
    """Returns the table of other calls of qk_norm_rope_cache, and of its unfused halves."""
    return gpu(NORM_ROPE_KINDS, H100_NORM_ROPE)


def gpu(cases: Sequence[Key] = GPU_CASES, file: str = H200) -> str:
    """Returns a table of device times on a GPU, beside PyTorch."""
    rows = []
    for name, key in zip(once(key.op for key in cases), cases, strict=True):
        row, best = ours(file, key), best_of_torch(file, key)
        torch = f"{microseconds(best['device_us'])} {best['contender']}" if best else ""
        rows.append((name, key.case, microseconds(row["device_us"]), percent(row["share_of_copy"]), torch))
    return markdown("op | case | us: | % copy: | best of PyTorch, us:", rows)


CPU_CASES = [
    Key(op, case)
    for op, cases in {
        "reshape_and_cache_flash": ("NHD/bf16/T=16384", "HND/bf16/T=16384")
        + ("NHD/fp8_e4m3/T=16384", "HND/fp8_e4m3/T=16384"),
        "reshape_and_cache": ("packed/bf16/T=16384", "packed/fp8_e4m3/T=16384"),
        "concat_and_cache_mla": ("bf16/T=131072", "fp8_e4m3/T=131072", "fp8_ds_mla/T=131072"),
        "concat_and_cache_mla_grouped": ("4-layers/bf16/T=16384", "4-layers/fp8_e4m3/T=16384"),
        "concat_and_cache_mla_rope_fused": ("16-heads/bf16/T=16384", "16-heads/fp8_e4m3/T=16384"),
        "concat_mla_q": ("128-heads/T=256",),
        "convert_fp8": ("bf16-to-fp8_e4m3/2^25", "fp8_e4m3-to-bf16/2^25"),
        "cp_gather_cache": ("bf16/256x512",),
        "gather_and_maybe_dequant_cache": ("fp8_e4m3/256x512",),
        "cp_gather_and_upconvert_fp8_kv_cache": ("256x512", "host-1-in-64/256x512"),
        "indexer_k_quant_and_cache": ("ue8m0/T=131072", "fp8_e4m3fn/T=131072"),
        "cp_gather_indexer_k_quant_cache": ("256x512",),
        "swap_blocks": ("h2h/4K",),
    }.items()
    for case in cases
]


NEWER_CPU_CASES = [
    Key(op, case)
    for op, cases in {
        "qk_norm_rope_cache": ("llama-8b/bf16/T=1", "llama-8b/bf16/T=16384", "llama-8b/fp8_e4m3/T=16384")
        + ("qwen3-30b/bf16/T=16384", "qwen3-30b/fp8_e4m3/T=16384", "all-heads/bf16/T=16384"),
        "rms_norm": ("16384x4096", "131072x128"),
        "rotary_embedding": ("32+8-heads/T=16384",),
        "merge_attn_states": ("bf16/T=16384",),
        "gather_kv_cache": ("NHD/bf16/256x128", "NHD/fp8_e4m3/256x128", "packed/bf16/256x128"),
        "copy_blocks_layers": ("NHD/32x2x128", "HND/32x2x128"),
        "checksum_blocks": ("NHD/32x2x128", "HND/32x2x128"),
        "pack_layers": ("h2h/NHD-to-HND-64/4x2x256", "h2h/same-order/4x2x256"),
        "move_tokens": ("2K/4x8192", "256B/4x16384"),
        "compact_cache": ("half/16x2048",),
    }.items()
    for case in cases
]


def newer_cpu() -> str:
    """Returns the table of the ops that the first table lacks."""
    return cpu(NEWER_CPU_CASES, (AVX2,))


def cpu(cases: Sequence[Key] = CPU_CASES, files: Sequence[str] = (EPYC_1, EPYC_2)) -> str:
    """Returns a table of shares of a copy on a CPU, beside PyTorch. The files are of 1 thread, 2 threads, ..."""
    rows = []
    for name, key in zip(once(key.op for key in cases), cases, strict=True):
        shares = [percent(ours(file, key)["share_of_copy"]) for file in files]
        best = best_of_torch(files[0], key)
        torch = f"{percent(best['copy_us'] / best['device_us'])} {best['contender']}" if best else ""
        rows.append((name, key.case, *shares, torch))
    threads = " | ".join(("1 thread, %:", "2 threads, %:")[: len(files)])
    return markdown(f"op | case | {threads} | best of PyTorch, 1 thread, %:", rows)


def swaps() -> str:
    """Returns the table of swaps: shares of one copy, and host times of calls."""
    directions = {"d2h": "device to host", "h2d": "host to device", "d2d": "within the device"}
    rows = []
    for op, prefix in (("swap_blocks", ""), ("swap_blocks_layers", "32x")):
        for direction, name in directions.items():
            cases = [ours(H200_SWAPS, Key(op, f"{direction}/{prefix}{size}")) for size in ("4K", "32K", "256K", "2M")]
            layers = "32 layers, " if prefix else ""
            host = " / ".join(f"{case['host_us']:.0f}" for case in cases)
            rows.append((f"{layers}{name}", *(percent(case["share_of_copy"]) for case in cases), host))
    return markdown("blocks in random order | 4 KiB: | 32 KiB: | 256 KiB: | 2 MiB: | host us of the call:", rows)


def transfers() -> str:
    """Returns the table of hand-overs between two processes."""
    files = {
        "nccl": (TRANSFER, "nccl, two H100s"),
        "cpu:gloo,cuda:nccl": (TRANSFER, "nccl, and gloo for messages, two H100s"),
        "gloo": (TRANSFER, "gloo, CPU processes"),
    }
    rows = []
    for backend, (file, name) in files.items():
        measured = json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text())
        rates = measured[f"transfer by {backend}, GB/s"]
        rows.append((name, f"{rates['plain']:.1f}", f"{rates['transfer']:.1f}", percent(rates["share"])))
    return markdown("by | plain send, GB/s: | `multikv.transfer`, GB/s: | %:", rows)


def summary() -> str:
    """Returns README's few lines."""
    chosen = [
        ("write 131,072 tokens, bfloat16", H200, Key("reshape_and_cache_flash", "NHD/bf16/T=131072")),
        ("the same as fp8", H200, Key("reshape_and_cache_flash", "NHD/fp8_e4m3/T=131072")),
        ("gather 256 x 512 MLA entries from fp8", H200, Key("gather_and_maybe_dequant_cache", "fp8_e4m3/256x512")),
        ("swap 2,045 blocks of 32 KiB to the host", H200_SWAPS, Key("swap_blocks", "d2h/32K")),
        ("attend, 64 sequences of 2,048 keys, bfloat16", ATTENTION, Key("paged_attention", "llama-8b/bf16/64x2048")),
        ("write 16,384 tokens as fp8", EPYC_1, Key("reshape_and_cache_flash", "NHD/fp8_e4m3/T=16384")),
    ]
    rows = []
    for what, file, key in chosen:
        row, best = ours(file, key), best_of_torch(file, key)
        where = {EPYC_1: "CPU, 1 thread", ATTENTION: "H100"}.get(file, "H200")
        torch = f"{percent(best['copy_us'] / best['device_us'])} ({best['contender']})" if best else ""
        rows.append((where, what, microseconds(row["device_us"]), percent(row["share_of_copy"]), torch))
    return markdown("on | job | us: | % of a copy: | best of PyTorch, %:", rows)


TABLES: dict[str, Callable[[], str]] = {
    "summary": summary,
    "gpu": gpu,
    "attention": attention,
    "newer_gpu": newer_gpu,
    "norm_rope_gpu": norm_rope_gpu,
    "norm_rope_kinds": norm_rope_kinds,
    "cpu": cpu,
    "newer_cpu": newer_cpu,
    "swaps": swaps,
    "transfers": transfers,
}


def filled(text: str) -> str:
    """Returns a page with all its tables made from the results."""
    pattern = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[3]}", text)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for page in PAGES:
        path = ROOT / page
        text = path.read_text()
        if filled(text) == text:
            continue
        if options.check:
            parser.exit(1, f"{page}: run python -m benchmarks.tables\n")
        path.write_text(filled(text))
        print(page)


if __name__ == "__main__":
    main()
