# SPDX-License-Identifier: Apache-2.0
"""What a pipeline is run against in unit tests: one object in the place of everything."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.states import PowerState
from compute_agent.capture.base import Export
from compute_agent.capture.workspace import Directories
from compute_agent.guest import description
from compute_agent.journal import Journal
from compute_agent.tools import Settings, Tools

DISK = "<disk type='file'><source file='/d'/><target dev='vda'/></disk>"
DOMAIN = f"<domain><devices>{DISK}</devices></domain>"


class Stage:
    """Every seam of the pipeline at once: notes what is done, and fails where it is told to."""

    method, pausable, since, uuid, budget_s = "backup", True, None, "guest", 5.0

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.on: dict[str, Callable[[], None]] = {}
        self.rate_bytes_s = 200 * 10**6
        self.disk_latency: Callable[[], Any] = lambda: None
        self.state = PowerState.RUNNING
        self.idle = True
        self.holds_room = self.was_let_run_on = False

    def do(self, what: str) -> None:
        self.done.append(what)
        self.on.get(what, lambda: None)()
        if what in self.fails:
            raise self.fails[what]

    def describe(self) -> ET.Element:
        return description.parse(DOMAIN)

    def guest(self, _uuid: str) -> Stage:
        self.do("find")
        return self

    def capacity_bytes(self, _target: str) -> int:
        return 1 << 30

    def power_state(self) -> PowerState:
        return self.state

    def is_active(self) -> bool:
        return True

    def is_idle(self) -> bool:
        return self.idle

    def can_be_backed_up(self, _domain: Any) -> bool:
        return True

    def was_shut_down_in_order(self) -> bool:
        return False

    def pause_since(self, _since: float, _timeout_s: float) -> None:
        return None

    def exports(self) -> tuple[Export, ...]:
        return (Export(target="vda", socket_path="/s", name="vda"),)

    def growing(self) -> tuple[Path, ...]:
        return ()

    def reserve_bytes(self) -> int:
        return 0

    def hold_room(self) -> None:
        self.holds_room = True

    def run_on_after_io_error(self) -> None:
        self.was_let_run_on = True
        if "run on" in self.fails:
            raise self.fails["run on"]

    def arm(self, _uuid: str, **_: Any) -> None:
        self.do("arm")

    def disarm(self, _uuid: str) -> None:
        self.do("disarm")

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name in ("suspend", "resume", "prepare", "begin", "end"):
            return lambda: self.do(name)
        raise AttributeError(name)


def disk_of(path: str, target: str = "vda", **other: Any) -> description.Disk:
    """Return a plain qcow2 disk in a file, but for what is `other`."""
    plain = {
        "device": "disk",
        "source_type": "file",
        "format": "qcow2",
        "has_iothread": False,
        "read_only": False,
        "shareable": False,
    }
    return description.Disk(target=target, path=path, **(plain | other))


SETTINGS = Settings(
    method="auto",
    pause="always",
    freeze="auto",
    freeze_timeout_s=1,
    disks="root",
    checkpoints=False,
    adaptive=False,
    latency_factor=4,
    image_format="qcow2",
    compression=None,
    scratch_reserve_percent=0,
    scratch_min_free_bytes=0,
    upload_retries=0,
    progress_log_interval_s=1,
)


def tools_of(stage: Any, journal: Journal, directory: Path, settings: Settings = SETTINGS) -> Tools:
    """Return the tools of a host that `stage` plays."""
    return Tools(
        hypervisor=stage,
        images=stage,
        journal=journal,
        increments=stage,
        directories=Directories(scratch=directory, sockets=directory),
        throttle=stage,
        sentinel=stage,
        restorer=stage,
        settings=settings,
    )
