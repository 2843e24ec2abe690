# SPDX-License-Identifier: Apache-2.0
"""On what the figures were measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from typing import Any

from tools.demo import CACHE


def describe() -> dict[str, Any]:
    """Return what a reader of the figures must know of the machine."""
    return {
        "measured_at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": _first_line("qemu-img", "--version"),
        "libvirt": _first_line("/usr/sbin/libvirtd", "--version"),
        "accelerator": (CACHE / "accelerator").read_text(),
    }


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.splitlines()[0]
