# SPDX-License-Identifier: Apache-2.0
"""What restoring is run against in unit tests: a shelf for Glance, an errand for the job."""

from __future__ import annotations

import json
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import JobCancelled
from common.glance import Image
from common.states import TaskState
from compute_agent.restore import room
from compute_agent.restore.model import RestoreSettings
from compute_agent.stream.throttle import Throttle
from tests.unit.common.shelf import MIB, Records

SIZE = 4 * MIB
#: What the sample image is made by, and what it then holds.
WRITES = ("write -P 1 0 1M", "write -P 2 3M 64k")
READS = ("1 0 1M", "0 1M 2M", "2 3M 64k", "0 3136k 960k")
IMAGE = str(uuid.UUID(int=1))
SETTINGS = RestoreSettings(
    formats=frozenset({"qcow2", "raw", "vmdk", "vdi", "vhd", "vhdx"}),
    max_virtual_bytes=1 << 40,
    min_free_bytes=MIB,
    retries=2,
    qemu_img_memory_bytes=1 << 30,
    qemu_img_timeout_s=60,
    progress_log_interval_s=60.0,
)


class Shelf(Records):
    """An ImageService that images are fetched from."""

    def __init__(self) -> None:
        super().__init__()
        self.downloads = 0
        #: Called before each chunk of a download, with its number.
        self.passing: Callable[[int], None] = lambda _number: None

    def put(self, content: Path | bytes, disk_format: str = "qcow2", **other: Any) -> Image:
        """Upload an image; `other` are fields of its record that are not what they were."""
        data = content if isinstance(content, bytes) else content.read_bytes()
        return self.keep(other.pop("id", IMAGE), data, disk_format=disk_format, **other)

    def download(self, image_id: str) -> Iterator[bytes]:
        self.downloads += 1
        data = self.data[image_id]
        for number, at in enumerate(range(0, len(data), MIB)):
            self.passing(number)
            yield data[at : at + MIB]


class Errand:
    """A job, as far as restoring sees it."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.throttle = Throttle(0)
        self.told: list[tuple[TaskState | None, int, int]] = []

    def raise_if_stopped(self) -> None:
        if self.stopped.is_set():
            raise JobCancelled("the job was cancelled")

    def tell(
        self,
        task_state: TaskState | None,
        *,
        bytes_done: int = 0,
        bytes_total: int = 0,
        rate_bytes_s: float = 0.0,
        eta_s: float | None = None,
    ) -> None:
        assert rate_bytes_s >= 0
        assert eta_s is None or eta_s >= 0
        self.told.append((task_state, bytes_done, bytes_total))


def run(*command: str | Path) -> str:
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def qcow2(path: Path, *writes: str, size: int = SIZE) -> Path:
    """Make a qcow2 and do to it what qemu-io's commands say."""
    run("qemu-img", "create", "-q", "-f", "qcow2", path, str(size))
    if writes:
        run("qemu-io", "-f", "qcow2", *(word for write in writes for word in ("-c", write)), path)
    return path


def converted(path: Path, target_format: str, *options: str) -> Path:
    """Return the qcow2 at `path` in another format."""
    target = path.with_name(f"{path.name}.{target_format}")
    run("qemu-img", "convert", "-f", "qcow2", "-O", target_format, *options, path, target)
    return target


def holds(path: Path, image_format: str, *reads: str) -> None:
    """Fail unless a disk holds what `reads` ("pattern offset length") say."""
    commands = [word for read in reads for word in ("-c", f"read -P {read}")]
    run("qemu-io", "-r", "-f", image_format, *commands, path)


def described(path: Path, image_format: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        run("qemu-img", "info", "--output=json", "-f", image_format, path)
    )
    return found


def leave(free_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": free_bytes})
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage)
