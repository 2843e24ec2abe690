# SPDX-License-Identifier: Apache-2.0
"""What the tests' clouds need and takes long to make: below `.demo/cache`, made once.

    python3 -m tools.stack.prepare    makes all of it, beside tests that need none of it

Runs on the system's Python with nothing installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.stack import glance, keystone
from tools.stack.guest import build_image, choose_accelerator

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".demo" / "cache"

_ENGINE_TIMEOUT_S = 30.0
_IMAGE_TIMEOUT_S = 600.0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep other processes out while something is put into the cache, or until it is there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE.parent / "cache.lock").open("a") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def guest_image() -> Path:
    """Return the directory of the test guest: kernel, initrd and a small disk."""
    with alone():
        return build_image(CACHE / "test-guest", size_mib=512, payload_mib=48, records_mib=8)


def accelerator() -> str:
    """Return "kvm" where it really works, "qemu" (software emulation) elsewhere."""
    image = guest_image()
    with alone():
        return choose_accelerator(image, CACHE / "accelerator")


def glance_venv() -> Path:
    """Return a venv with PyPI's Glance."""
    with alone():
        glance.make_venv(venv := CACHE / "venv-glance")
    return venv


def keystone_venv() -> Path:
    """Return a venv with PyPI's Keystone."""
    with alone():
        keystone.make_venv(venv := CACHE / "venv-keystone")
    return venv


def broker_container() -> None:
    """Make the broker's container image, if an engine answers."""
    with alone():
        engine = ["timeout", str(_ENGINE_TIMEOUT_S), "docker", "info"]
        if subprocess.run(engine, capture_output=True, check=False).returncode == 0:
            image = ROOT / "tools" / "rabbitmq-image"
            subprocess.run([str(image)], check=True, timeout=_IMAGE_TIMEOUT_S)


def main() -> int:
    """Make everything; what cannot be made is left to who needs it. Return the exit code."""
    everything: tuple[Callable[[], object], ...] = (
        glance_venv,
        accelerator,
        broker_container,
        keystone_venv,
    )
    failed = 0
    for make in everything:
        try:
            make()
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            sys.stderr.write(f"{make.__name__}: {error}\n")
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
