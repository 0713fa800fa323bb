"""Draws the results of the demo: the bandwidth of each case in % of that of a copy."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .measure import Result

_COLOUR, _TRACK = "#1b6ca8", "#eeeeee"


def import_matplotlib() -> Any:
    """Returns matplotlib.pyplot, which draws to files.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    importlib.import_module("matplotlib").use("agg")
    return importlib.import_module("matplotlib.pyplot")


def draw(results: list[Result], about: dict[str, Any], path: Path) -> None:
    """Draws the results that were timed to a file, whose suffix gives the format, such as .svg or .png.

    Args:
        results: as `measure.run` returns them.
        about: as `measure.describe` returns it.
        path: the file.
    """
    pyplot = import_matplotlib()
    timed = [(f"{r.op}  {r.case}", 100 * r.share_of_copy) for r in results if r.share_of_copy is not None]
    figure, axes = pyplot.subplots(figsize=(10, 0.3 * len(timed) + 1.2), layout="constrained")
    for y, (_, share) in enumerate(timed):
        axes.plot([0, 100], [y, y], color=_TRACK, linewidth=6, zorder=0, solid_capstyle="butt")
        axes.plot(share, y, "o", color=_COLOUR, markersize=7)
    axes.set_yticks(range(len(timed)), [name for name, _ in timed], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(100, color="black", linewidth=0.8)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"% of a copy of as many bytes ({about['copy']})", fontsize=8)
    axes.set_title(f"multikv {about['multikv']} on {about['device_name']}, torch {about['torch']}", fontsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(path)
    pyplot.close(figure)
