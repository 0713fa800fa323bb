"""`python -m benchmarks`, in the root of the repository: bandwidth of every op, as a table and as JSON.

For each case: a check of every byte, then the time of multikv, of PyTorch and (at a few sizes) of torch.compile on the
same random tensors, next to a copy of as many bytes. What is checked and what the columns mean: benchmarks/README.md.
"""

import argparse
import re
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import convert, gather, indexer, machine, mla, report, reshape_and_cache, runner, swap

SUITES = (reshape_and_cache, mla, indexer, gather, convert, swap)
CPU_MAX_MB = 512


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--op", action="append", metavar="NAME", help="only this op; may be given several times")
    parser.add_argument("--shapes", action="store_true", help="the shapes of models instead of the sizes")
    parser.add_argument("--only", metavar="REGEX", default="", help="only cases whose name matches, e.g. 'NHD/bf16'")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, no torch.compile")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--max-mb",
        type=float,
        help=f"leave out cases that move more megabytes (default: {CPU_MAX_MB} on a CPU, no limit on a GPU)",
    )
    parser.add_argument("--contenders", action="store_true", help="print a row for each contender, not for each case")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write machine and results there")
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A.json", "B.json"),
        help="compare two files of results and run nothing",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases and run nothing")
    arguments = parser.parse_args()

    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file has no edge to wrap at
    if arguments.compare:
        report.print_comparison(console, *arguments.compare)
        return 0
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU on this host")
    max_mb = arguments.max_mb or (CPU_MAX_MB if device.type == "cpu" else float("inf"))
    cases = [
        case
        for suite in SUITES
        for case in suite.cases(device)
        if case.of_model == arguments.shapes
        and (case.quick or not arguments.quick)
        and case.op in (arguments.op or [case.op])
        and re.search(arguments.only, case.full_name)
        and case.num_bytes <= max_mb * 1e6
    ]
    cases.sort(key=lambda case: case.op)
    if not cases:
        parser.error("no case matches")
    if arguments.list:
        print(*(case.full_name for case in cases), sep="\n")
        return 0

    progress = Console(stderr=True, highlight=False)
    about = machine.describe(device)
    results: list[runner.Result] = []
    for number, case in enumerate(cases, 1):
        progress.print(f"{number}/{len(cases)} {case.full_name}")
        results += runner.run(case, device, compiled=not (arguments.quick or arguments.no_compile))
        if arguments.out:
            report.save(arguments.out, about, results)  # after every case, so that a crash costs only one
    print_results = report.print_contenders if arguments.contenders else report.print_cases
    print_results(console, about, results)
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
