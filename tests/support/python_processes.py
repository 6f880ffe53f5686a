"""Python processes that tests start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import runtime


def run_python(
    code: str,
    *arguments: object,
    first_on_path: Path | None = None,
    cwd: Path | None = None,
    timeout_s: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter that finds the same ``runtime`` and ``edgevis`` as this one."""
    return subprocess.run(
        python_command(code, *arguments),
        env=python_environment(first_on_path),
        cwd=cwd or Path(__file__).parent,  # python -c looks there first: not in a checkout of the repository
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def python_command(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]


def python_environment(first_on_path: Path | None = None) -> dict[str, str]:
    root = Path(str(runtime.__file__)).parent.parent
    path = [str(first_on_path)] if first_on_path else []
    path += [str(root), str(Path(__file__).parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def succeeded(process: subprocess.CompletedProcess[str]) -> str:
    """What a subprocess printed; fails with its errors when it failed."""
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()
