# SPDX-License-Identifier: Apache-2.0
"""A venv for a service that must not share one with Stillframe."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


def make_venv(venv: Path, requirements: Iterable[str]) -> None:
    """Install `requirements` into `venv`, unless just these are there."""
    stamp = venv / "stillframe-requirements"
    wanted = "\n".join(requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=120)
    pip = [str(venv / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *requirements], check=True, timeout=900)
    stamp.write_text(wanted)
