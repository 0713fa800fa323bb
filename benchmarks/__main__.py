"""`python -m benchmarks`, in the root of the repository: measures the bandwidth of every op.

In each case, multikv, PyTorch and (at a few sizes) torch.compile do the same job on the same random tensors. What they
write is checked byte for byte. Then they are timed, and so is a copy of as many bytes. benchmarks/README.md explains
the checks and the columns of the table.
"""

import argparse
import re
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import (
    attention,
    blocks,
    convert,
    gather,
    indexer,
    machine,
    mla,
    mla_rope,
    moves,
    norm_rope,
    report,
    reshape_and_cache,
    rotate,
    runner,
    slots,
    swap,
)
from benchmarks.case import Case

SUITES = (
    reshape_and_cache,
    mla,
    mla_rope,
    indexer,
    gather,
    convert,
    swap,
    blocks,
    moves,
    slots,
    rotate,
    norm_rope,
    attention,
)
CPU_MAX_MB = 512
FILE_WIDTH = 120  # columns of tables, where the output is not a terminal


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="CPU threads (default: torch's own choice)")
    add("--op", action="append", metavar="NAME", help="only this op; may be given several times")
    add("--shapes", action="store_true", help="run the cases with shapes of models instead of those of growing size")
    add("--only", metavar="REGEX", default="", help="only cases whose name matches, e.g. 'NHD/bf16'")
    add("--quick", action="store_true", help="fewer sizes, no torch.compile")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    max_mb = f"leave out cases that move more megabytes than this (default: {CPU_MAX_MB} on a CPU, no limit on a GPU)"
    add("--max-mb", type=float, help=max_mb)
    add("--contenders", action="store_true", help="print a row for each contender instead of one for each case")
    add("--out", type=Path, metavar="FILE.json", help="write machine and results to this file")
    compare = "compare two files of results and run nothing"
    add("--compare", nargs=2, type=Path, metavar=("A.json", "B.json"), help=compare)
    add("--list", action="store_true", help="print the names of the cases and run nothing")
    return parser


def select(options: argparse.Namespace, device: torch.device) -> list[Case]:
    """Returns the cases that the options select, sorted by op."""
    max_mb = options.max_mb or (CPU_MAX_MB if device.type == "cpu" else float("inf"))
    cases = [
        case
        for suite in SUITES
        for case in suite.cases(device)
        if case.of_model == options.shapes
        and (case.quick or not options.quick)
        and case.op in (options.op or [case.op])
        and re.search(options.only, case.full_name)
        and case.num_bytes <= max_mb * 1e6
    ]
    return sorted(cases, key=lambda case: case.op)


def run(cases: list[Case], options: argparse.Namespace, device: torch.device, console: Console) -> int:
    """Runs cases and prints their results; returns the exit code."""
    progress = Console(stderr=True, highlight=False)
    about = machine.describe(device)
    results: list[runner.Result] = []
    for number, case in enumerate(cases, 1):
        progress.print(f"{number}/{len(cases)} {case.full_name}")
        results += runner.run(case, device, compiled=not (options.quick or options.no_compile))
        if options.out:
            report.save(options.out, about, results)  # after every case, so that a crash loses only one
    print_results = report.print_contenders if options.contenders else report.print_cases
    print_results(console, about, results)
    return 1 if any(result.failed for result in results) else 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the command with some arguments (None: those of this process); returns the exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    if options.compare:
        report.print_comparison(console, *options.compare)
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU on this host")
    cases = select(options, device)
    if not cases:
        parser.error("no case matches")
    if options.list:
        print(*(case.full_name for case in cases), sep="\n")
        return 0
    return run(cases, options, device, console)


if __name__ == "__main__":
    raise SystemExit(main())
