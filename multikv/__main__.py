"""`python -m multikv`: which libraries serve this host and why, and every op run on it, checked and timed."""

import argparse
import dataclasses
import itertools
import json
import platform as host
from collections.abc import Callable
from typing import Any

import rich.box
import torch
from rich.console import Console
from rich.table import Table

import multikv
from multikv import _cases, _timing, platforms, reference


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: `make` with the sizes `small` is checked against the slow reference, with `large` it is timed."""

    name: str
    make: Callable[..., _cases.Workload]  # named as the op
    small: dict[str, Any]
    large: dict[str, Any]

    @property
    def op(self) -> str:
        return self.make.__name__


def _case(make: Callable[..., _cases.Workload], name: str, small: dict[str, Any], large: dict[str, Any],
          **options: Any) -> Case:
    return Case(name, make, small | options, large | options)


def _write(make: Callable[..., _cases.Workload], name: str, num_tokens: int = 4096, **options: Any) -> Case:
    return _case(make, f"{name}, {num_tokens:,} tokens", {"num_tokens": 37}, {"num_tokens": num_tokens}, **options)


def _gather(make: Callable[..., _cases.Workload], name: str, **options: Any) -> Case:
    return _case(make, f"{name}, 16 x 1,024 tokens", {"batch_size": 3, "length": 100},
                 {"batch_size": 16, "length": 1024}, **options)


CASES = [
    _write(_cases.reshape_and_cache_flash, "NHD bfloat16"),
    _write(_cases.reshape_and_cache_flash, "HND fp8_e4m3", kv_cache_dtype="fp8_e4m3", layout="HND"),
    _write(_cases.reshape_and_cache, "bfloat16"),
    _write(_cases.reshape_and_cache, "interleaved V, fp8_e4m3", kv_cache_dtype="fp8_e4m3", interleaved_v=True),
    *(_write(_cases.concat_and_cache_mla, dtype, kv_cache_dtype=dtype)
      for dtype in ("bfloat16", "fp8_e4m3", "fp8_ds_mla")),
    *(_write(_cases.concat_and_cache_mla_rope_fused, f"16 heads, {dtype}", kv_cache_dtype=dtype, num_heads=16)
      for dtype in ("bfloat16", "fp8_e4m3")),
    _write(_cases.concat_and_cache_mla_grouped, "4 layers, fp8_e4m3", 1024, kv_cache_dtype="fp8_e4m3"),
    _write(_cases.concat_mla_q, "128 heads", 128),
    *(_case(_cases.convert_fp8, name, {"num_elements": 1000}, {"num_elements": 1 << 22}, to_fp8=to_fp8)
      for name, to_fp8 in (("bfloat16 to fp8_e4m3, 4 Mi", True), ("fp8_e4m3 to bfloat16, 4 Mi", False))),
    _gather(_cases.cp_gather_cache, "bfloat16"),
    _gather(_cases.gather_and_maybe_dequant_cache, "bfloat16"),
    _gather(_cases.gather_and_maybe_dequant_cache, "fp8_e4m3", kv_cache_dtype="fp8_e4m3"),
    _gather(_cases.cp_gather_and_upconvert_fp8_kv_cache, "fp8_ds_mla"),
    _gather(_cases.cp_gather_and_upconvert_fp8_kv_cache, "1/64 on the host", host_share=1 / 64),
    _write(_cases.indexer_k_quant_and_cache, "fp8_e4m3"),
    _gather(_cases.cp_gather_indexer_k_quant_cache, "fp8_e4m3"),
    *(_case(_cases.swap_blocks, f"{name}, 256 x 32 KiB", {"num_blocks": 8, "block_bytes": 4096},
            {"num_blocks": 256, "block_bytes": 32768}, direction=direction)
      for name, direction in (("to the host", "d2h"), ("from the host", "h2d"))),
    _case(_cases.swap_blocks_layers, "to the host, 8 x 64 x 32 KiB", {"num_blocks": 8, "block_bytes": 4096},
          {"num_blocks": 64, "block_bytes": 32768}, direction="d2h", num_layers=8),
]


@dataclasses.dataclass
class Result:
    op: str
    case: str
    ok: bool = False
    error: str | None = None
    time_us: float | None = None
    gb_per_s: float | None = None
    share_of_copy: float | None = None


def run(case: Case, device: torch.device) -> Result:
    """Checks and times one case; whatever goes wrong is part of the result."""
    result = Result(case.op, case.name)
    try:
        small = case.make(device, **case.small)
        expected = small.copy("cpu")
        expected.bind(reference)()
        small.bind()()
        _timing.wait(device)  # it may write to the host's memory
        result.ok = _cases.same_bytes(small.outputs(), expected.outputs())
        if not result.ok:
            result.error = "bytes differ from multikv.reference"
            return result
        num_bytes = case.make(torch.device("meta"), **case.large).num_bytes
        workloads = [case.make(device, **case.large) for _ in range(_cases.rotation(num_bytes, device))]
        contenders = [[workload.bind() for workload in workloads], _cases.copy_calls(workloads[0], device)]
        seconds, copy_seconds = _timing.device_times(contenders, device, graph=workloads[0].graph)
        result.time_us = seconds * 1e6
        result.gb_per_s = num_bytes / seconds * 1e-9
        result.share_of_copy = copy_seconds / seconds
    except Exception as error:  # noqa: BLE001: a report must not stop at the first broken op
        result.ok = False
        result.error = f"{type(error).__name__}: {error}".strip()
    return result


def describe(device: torch.device) -> dict[str, Any]:
    """This host, as multikv sees it."""
    return {
        "multikv": getattr(multikv, "__version__", "unknown"),
        "torch": torch.__version__,
        "python": host.python_version(),
        "platform": platforms.platform(),
        "report": platforms.report().splitlines(),
        "libraries": [{"name": library.name, "path": str(library.path), "loaded": library.loaded,
                       "reason": library.reason, "architectures": library.architectures}
                      for library in platforms.libraries()],
        "cpu_isa": platforms.cpu_isa(),
        "cpu_isas": list(platforms.cpu_isas()),
        "device": str(device),
        "device_name": _cases.device_name(device),
        "threads": torch.get_num_threads(),
        "copy": _cases.copy_description(device),
    }


def table(results: list[Result], copy: str) -> Table:
    out = Table(title=f"bytes: as multikv.reference writes them\n% copy: against a copy of as many bytes ({copy})",
                title_justify="left", box=rich.box.SIMPLE_HEAD)
    for name in ("op and case", "bytes"):
        out.add_column(name, no_wrap=True)
    for name in ("us", "GB/s", "% copy"):
        out.add_column(name, justify="right", no_wrap=True)
    for op, rows in itertools.groupby(results, lambda r: r.op):
        out.add_row(f"[bold]{op}")
        for r in rows:
            numbers = () if r.time_us is None or r.gb_per_s is None or r.share_of_copy is None else (
                f"{r.time_us:.1f}", f"{r.gb_per_s:.1f}", f"{100 * r.share_of_copy:.0f}")
            out.add_row(f"  {r.case}", "[green]equal[/]" if r.ok else "[bold red]WRONG[/]", *numbers)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m multikv", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", choices=("cpu", "cuda"),
                        help="where the ops run (default: the GPU, if a library serves it)")
    arguments = parser.parse_args()
    device = torch.device(arguments.device or ("cpu" if platforms.platform() == "cpu" else "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU on this host")

    about = describe(device)
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file has no edge to wrap at
    if not arguments.json:
        console.print(f"[bold]multikv {about['multikv']}[/], torch {about['torch']}, Python {about['python']}")
        console.print(f"platform: [bold]{about['platform']}[/]; ops run on {about['device_name']}, "
                      f"{about['threads']} CPU threads", highlight=False)
        console.print(*about["report"], sep="\n", markup=False, highlight=False)
    results = [run(case, device) for case in CASES]
    ok = all(r.ok for r in results) and any(library["loaded"] for library in about["libraries"])
    if arguments.json:
        print(json.dumps({**about, "ops": [dataclasses.asdict(r) for r in results], "ok": ok}))
    else:
        console.print(table(results, about["copy"]))
        for r in results:
            if r.error:
                console.print(f"{r.op}, {r.case}: {r.error}", style="red", markup=False)
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
