"""`python -m multikv`: which libraries serve this host and why, and every op run on it, checked and timed."""

import argparse
import dataclasses
import functools
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
    """One row: `small` is checked against the slow reference, `large` is timed."""

    op: str
    name: str
    small: Callable[[torch.device], _cases.Workload]
    large: Callable[[torch.device], _cases.Workload]


def _write_case(layout: str, kv_cache_dtype: str) -> Case:
    make = functools.partial(_cases.reshape_and_cache_flash, kv_cache_dtype=kv_cache_dtype, layout=layout)
    return Case("reshape_and_cache_flash", f"{layout} {kv_cache_dtype}, 4,096 tokens",
                small=functools.partial(make, num_tokens=37), large=functools.partial(make, num_tokens=4096))


def _gather_case(name: str, dtype: torch.dtype) -> Case:
    make = functools.partial(_cases.cp_gather_cache, dtype=dtype)
    return Case("cp_gather_cache", f"MLA {name}, 16 x 1,024 tokens",
                small=functools.partial(make, batch_size=3, length=100),
                large=functools.partial(make, batch_size=16, length=1024))


CASES = [
    *(_write_case(layout, dtype) for layout in ("NHD", "HND") for dtype in ("bfloat16", "fp8_e4m3")),
    _gather_case("bfloat16", torch.bfloat16),
    _gather_case("fp8", torch.uint8),
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
        small = case.small(device)
        expected = small.copy("cpu")
        expected.bind(reference)()
        small.bind()()
        result.ok = _cases.same_bytes(small.outputs(), expected.outputs())
        if not result.ok:
            result.error = "bytes differ from multikv.reference"
            return result
        num_bytes = case.large(device).num_bytes
        workloads = [case.large(device) for _ in range(_cases.rotation(num_bytes, device))]
        calls = [workload.bind() for workload in workloads]
        seconds, copy_seconds = _timing.device_times([calls, _cases.copy_calls(num_bytes, device)], device)
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
