"""Programs that tests run in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_program(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python *command` in the root of the repository, without this process's settings of multikv."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MULTIKV_")}
    inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def output_of(code: str, **environment: str) -> str:
    """What a fresh interpreter prints that runs this code."""
    result = run_program("-c", code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def import_error(**environment: str) -> str:
    """The text of the ImportError that `import multikv` raises in this environment."""
    result = run_program("-c", "import multikv", **environment)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    return last.removeprefix("ImportError: ")
