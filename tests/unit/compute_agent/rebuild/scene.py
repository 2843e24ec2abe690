# SPDX-License-Identifier: Apache-2.0
"""What a rebuild is run against in unit tests: a guest on a real file, and all around it."""

from __future__ import annotations

import os
import threading
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.messages import InstanceRef, RebuildRequest
from common.states import PowerState
from compute_agent import rebuild
from compute_agent.guest import description
from compute_agent.jobs import Job
from compute_agent.journal import Journal
from compute_agent.proofs import ProofSettings
from compute_agent.rebuild import STEPS, Rebuilds
from compute_agent.rebuild_run import RebuildSettings
from tests.unit.compute_agent.conftest import RecordedReports

GUEST, IMAGE = str(uuid.UUID(int=7)), str(uuid.UUID(int=8))
OLD, NEW = b"old disk", b"new disk"
RUNNING, OFF = PowerState.RUNNING, PowerState.SHUTDOWN
NAMES = [step.name for step in STEPS]


SETTINGS = RebuildSettings(
    shutdown_timeout_s=1.0,
    proof=ProofSettings(proof="running", running_s=0.0, timeout_s=0.1, port=22),
)


class Scene:
    """A guest on a real file, its hypervisor, its increments and what makes disks of images."""

    uuid = GUEST

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self.state = RUNNING
        self.runs_from = OLD
        self.starts = 0
        self.obeys = True
        self.persistent, self.saved_memory = True, False
        self.arch = "x86_64"
        self.source = "file"
        self.more_of_disk = self.more_of_source = ""
        self.runs_on = ""
        self.metadata: str | None = None
        self.forgotten = False
        self.properties: dict[str, str] = {"hw_disk_bus": "virtio", "image_type": "snapshot"}
        #: What happens at the begin of what is done: raise, or anything.
        self.at: dict[str, Callable[[], None]] = {}
        self.done: list[str] = []

    def _do(self, what: str) -> None:
        self.done.append(what)
        self.at.get(what, lambda: None)()

    def guest(self, _uuid: str) -> Scene:
        self._do("find")
        return self

    def definition(self) -> ET.Element:
        return description.parse(
            f"<domain><os><type arch='{self.arch}'>hvm</type></os>"
            f"<metadata>{self.metadata or ''}</metadata>"
            f"<devices><disk type='{self.source}'><driver type='raw'/>"
            f"<source {'dev' if self.source == 'block' else 'file'}='{self.disk}'>"
            f"{self.more_of_source}</source>"
            f"<target dev='vda'/>{self.more_of_disk}</disk></devices></domain>"
        )

    def is_persistent(self) -> bool:
        return self.persistent

    def has_saved_memory(self) -> bool:
        return self.saved_memory

    def source_path(self, _target: str) -> str:
        return self.runs_on or str(self.disk)

    def capacity_bytes(self, _target: str) -> int:
        return 1 << 20

    def is_active(self) -> bool:
        return self.state is not OFF

    def power_state(self) -> PowerState:
        return self.state

    def run_id(self) -> str:
        return str(self.starts) if self.is_active() else ""

    def shut_down(self, _timeout_s: float, stopped: threading.Event) -> bool:
        if self.state is OFF:
            return True
        self._do("button")
        if self.obeys and not stopped.is_set():
            self.state = OFF
        return self.state is OFF

    def cut_power(self) -> None:
        if self.state is OFF:
            return
        self._do("cut")
        self.state = OFF

    def start(self) -> None:
        self._do("start")
        if self.state is OFF:
            self.state, self.starts = RUNNING, self.starts + 1
        self.runs_from = self.disk.read_bytes()

    def write_metadata(self, change: Any, *, back: bool = False) -> None:
        self._do("unwrite" if back else "write")
        self.metadata = change.before if back else change.after

    def forget(self, _guest: object) -> None:
        self._do("forget")
        self.forgotten = True

    def disk_paths(self) -> frozenset[str]:
        return frozenset([str(self.disk)])

    def instances(self) -> tuple[str, ...]:
        return ()

    def prove(self, _job: object, image_id: str, room: Path, **_: Any) -> Any:
        self._do("prove image")
        return Proven(image_id, room, self.properties)

    def build(self, _job: object, _proven: object, wish: Any) -> None:
        self._do("build")
        wish.path.write_bytes(NEW)
        if wish.base_path is not None:
            wish.base_path.write_bytes(b"base")


class Proven:
    """A proven image."""

    format, is_disk, virtual_bytes = "qcow2", True, 1 << 19

    def __init__(self, image_id: str, _room: Path, properties: dict[str, str]) -> None:
        self.image = type(
            "Image", (), {"id": image_id, "properties": properties, "size_bytes": 1000}
        )


class Killed(BaseException):
    """The agent dies here."""


def new_job(journal: Journal, **asked: Any) -> Job:
    request = RebuildRequest(instance=InstanceRef(uuid=GUEST), image_id=IMAGE, **asked)
    journal.accept(request, {})
    return as_journalled(journal, request.job_id)


def as_journalled(journal: Journal, job_id: str) -> Job:
    """Return the job as an agent finds it in its journal."""
    entry = journal.find(job_id)
    assert entry is not None
    return Job(entry, "h", RecordedReports(journal))


def is_alone(scene: Scene) -> bool:
    return os.listdir(scene.disk.parent) == [scene.disk.name]


def assert_as_it_was(scene: Scene) -> None:
    assert scene.disk.read_bytes() == OLD
    assert is_alone(scene)
    assert (scene.state, scene.runs_from, scene.metadata) == (RUNNING, OLD, None)
    assert not scene.forgotten


def fail(error: BaseException) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


def die_in(monkeypatch: pytest.MonkeyPatch, at: str, *, done: bool) -> None:
    """Let the agent die in a step, and nothing of its own be undone then."""

    def dying(step: rebuild.Step) -> rebuild.Step:
        def die(run: Any) -> None:
            if done:
                step.run(run)
            raise Killed

        return rebuild.Step(name=step.name, run=die, task_state=step.task_state, final=step.final)

    steps = tuple(dying(step) if step.name == at else step for step in STEPS)
    monkeypatch.setattr(rebuild, "STEPS", steps)
    monkeypatch.setattr(Rebuilds, "_undo", lambda *_: None)
    monkeypatch.setattr(rebuild, "_note_power", lambda *_: None)


def next_agent(rebuilds: Rebuilds, journal: Journal, job_id: str) -> None:
    """Do what recovery does: go on where that is said, else put right."""
    job = as_journalled(journal, job_id)
    if rebuild.goes_on(job.entry):
        rebuilds.run(job)
    else:
        assert rebuilds.recover(job) is False
