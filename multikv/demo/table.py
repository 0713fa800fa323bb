"""Prints the results of the demo to a terminal or a file, each as soon as it is measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console

from .measure import Result

_FILE_WIDTH = 120  # columns, where the output is not a terminal
_NUMBERS = (("us", 10), ("GB/s", 8), ("% copy", 8))  # columns of numbers, and their widths


def make_console() -> Console:
    """Returns a console for the standard output."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def print_header(console: Console, about: dict[str, Any]) -> None:
    """Prints what `measure.describe` returned."""
    console.print(f"[bold]multikv {about['multikv']}[/], torch {about['torch']}, Python {about['python']}")
    console.print(
        f"platform: [bold]{about['platform']}[/]; ops run on {about['device_name']}, {about['threads']} CPU threads"
    )
    console.print(*about["report"], sep="\n", markup=False)


class Rows:
    """The table of results, printed row by row."""

    def __init__(self, console: Console, names: Iterable[str], copy: str) -> None:
        """Prints the head of the table.

        Args:
            console: where to print.
            names: names of all cases that will come.
            copy: describes the copy that times are compared with.
        """
        self._console = console
        self._width = max(map(len, names)) + 4
        self._op = ""
        self._errors: list[Result] = []
        console.print("\ncheck: right if the bytes are those of multikv.reference")
        console.print("       (attention: if no element differs by more than 2^-7 of the largest)")
        console.print(f"% copy: 100 * time of a copy of as many bytes ({copy}) / time of the op\n", markup=False)
        head = "op and case".ljust(self._width) + "check" + "".join(name.rjust(width) for name, width in _NUMBERS)
        console.print(f"[bold]{head}[/]")
        console.print("-" * len(head))

    def add(self, result: Result) -> None:
        """Prints a result, and before it the name of its op if it is another than that of the last result."""
        if result.op != self._op:
            self._op = result.op
            self._console.print(f"[bold]{result.op}[/]")
        check = "[green]right[/]" if result.ok else "[bold red]WRONG[/]"
        self._console.print(f"  {result.case}".ljust(self._width) + check + "".join(_numbers(result)))
        if result.error:
            self._errors.append(result)

    def finish(self) -> None:
        """Prints the errors."""
        for r in self._errors:
            self._console.print(f"{r.op}, {r.case}: {r.error}", style="red", markup=False)


def _numbers(r: Result) -> Iterable[str]:
    if r.time_us is None or r.gb_per_s is None or r.share_of_copy is None:
        return ()
    texts = f"{r.time_us:.1f}", f"{r.gb_per_s:.1f}", f"{100 * r.share_of_copy:.0f}"
    return (f" {text:>{width - 1}}" for text, (_, width) in zip(texts, _NUMBERS, strict=True))
