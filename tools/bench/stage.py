# SPDX-License-Identifier: Apache-2.0
"""One case's guests on a private cloud, and the meter that a run of a method is put under."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import libvirt

from compute_agent.guest.connection import Hypervisor
from tools.bench import measure
from tools.bench.cases import BASE_MIB, PAYLOAD_MIB, Case, fragment, make_base
from tools.bench.figures import Sample
from tools.bench.measure import Daemon, Space, Tool, Usage
from tools.demo import CACHE
from tools.stack import glance
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest, GuestWish, build_image, choose_accelerator
from tools.stack.libvirtd import Libvirtd

#: Rows compare work, not limits; the row of the default limit sets it anew.
_UNLIMITED = "bandwidth_limit = 0"
_STAMPS_TIMEOUT_S = 0.1
#: Where the heartbeat before a run is found: a stop may begin with it.
_BEAT_BEFORE_S = 0.1


@contextlib.contextmanager
def private_cloud(*, extra_qemu_conf: str = "", image_store: Path | None = None) -> Iterator[Cloud]:
    """Start broker, Glance, libvirtd and both daemons; stop and remove them afterwards.

    Glance keeps its images below `image_store`, or beside everything else.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    say("Building what is missing: the guest's image, Glance's venv")
    image = build_image(CACHE / "guest", BASE_MIB, PAYLOAD_MIB)
    glance.make_venv(CACHE / "venv-glance")
    with _own_directory() as directory, _own_directory(image_store) as images:
        cloud = Cloud(
            directory,
            cache=CACHE,
            bin_directory=Path(sys.executable).parent,
            image=image,
            accelerator=choose_accelerator(image, CACHE / "accelerator"),
            extra_config=_UNLIMITED,
        )
        cloud.glance.images = images
        cloud.libvirtd = Libvirtd(cloud.directory / "libvirt", CACHE, extra_qemu_conf)
        try:
            say("Starting RabbitMQ, Glance, libvirtd and the two daemons")
            cloud.start_parts()
            cloud.start_daemons()
            yield cloud
        except BaseException:
            log = cloud.log_directory / "n-cpu.log"
            say(f"The end of {log.name}:\n{_tail(log)}")
            raise
        finally:
            cloud.stop()


@contextlib.contextmanager
def _own_directory(parent: Path | None = None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(
        prefix="sf-bench-", dir=parent, ignore_cleanup_errors=True
    ) as directory:
        yield Path(directory)


@contextlib.contextmanager
def listening(cloud: Cloud) -> Iterator[Hypervisor]:
    """Open a libvirt connection of our own, which hears QEMU's events."""
    hypervisor = Hypervisor(cloud.libvirtd.uri, keepalive_interval_s=5, keepalive_count=5)
    hypervisor.start()
    try:
        yield hypervisor
    finally:
        hypervisor.stop(time.monotonic() + 5)


class Stage:
    """A case's running guest, a second one that is off, and room for what Nova's ways leave."""

    def __init__(self, cloud: Cloud, hypervisor: Hypervisor, case: Case, quiet_s: float) -> None:
        self.cloud = cloud
        self.case = case
        self.temp = cloud.directory / "temp"
        #: The bytes that every bare PUT sends; set once there are some.
        #: Beside Glance's own files, of which it is one more name.
        self.put_source = cloud.glance.images / "put-source"
        self.hash_s_per_byte = measure.sha512_s_per_byte()
        self._hypervisor = hypervisor
        self._quiet_s = quiet_s
        #: None: whatever the case before has left.
        self._options: tuple[str, ...] | None = None
        base = cloud.directory / f"base-{case.size_gib}-{case.data_mib}"
        if not base.exists():
            say(f"Making a base image of {case.size_gib} GiB")
            make_base(CACHE / "guest", base, case.size_gib, case.data_mib)
        self.base_disk = base / "disk.qcow2"
        name = f"b{case.size_gib}{'w' if case.writes else 'i'}{'f' if case.pieces else ''}"
        self.guest = self._guest(base, name)
        self.off = self._guest(base, f"{name}-off")

    def __enter__(self) -> Self:
        say(f"{self.case.name}: making the disks, booting the guest")
        self.temp.mkdir(exist_ok=True)
        for guest in (self.guest, self.off):
            guest.define()
        if self.case.pieces:
            fragment(self.guest.disk, self.case.size_gib, self.case.pieces)
        self.guest.start()
        self.cloud.wait_for_instance(self.guest)
        self.cloud.wait_for_instance(self.off, "SHUTOFF")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for guest in (self.guest, self.off):
            guest.remove()
        self.put_source.unlink(missing_ok=True)

    @property
    def domain(self) -> libvirt.virDomain:
        """The running guest, on a connection of our own."""
        return self._hypervisor.connection().lookupByUUIDString(self.guest.uuid)

    @property
    def agent(self) -> Daemon:
        """The agent, as a tool to be measured."""
        return Daemon(self.cloud.agent.pid or 0)

    def use(self, options: tuple[str, ...]) -> None:
        """Have the agent obey these lines of [capture] on top of no limit."""
        if options != self._options:
            self.cloud.reconfigure_agent(*options)
            self._options = options

    def stop_since(self, since: float, timeout_s: float = _STAMPS_TIMEOUT_S) -> tuple[float, ...]:
        """Return how long the vCPUs stood in the stop that began after `since`; () without one.

        In milliseconds, by QEMU's stamps; `since` in seconds since 1970.
        """
        proof = self._hypervisor.stamps.pause_since(self.guest.uuid, since, timeout_s)
        return () if proof is None else (proof.pause_ms,)

    def meter(self, tool: Tool) -> Meter:
        """Look at the undisturbed guest for a while, then return the meter of a run."""
        return Meter(self, tool, self._quiet_s)

    def evict(self) -> None:
        """Drop the disks from the page cache, where a cloud's guests do not leave theirs either.

        QEMU reads past it; only Nova's way, which does not, would find there what
        the making of the disks has left.
        """
        for disk in (self.base_disk, self.guest.disk, self.off.disk):
            descriptor = os.open(disk, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def scratch_files(self) -> Iterator[Path]:
        """Yield what holds back the guest's own writes: scratch files, overlays."""
        yield from measure.files_below([self.cloud.directory / "scratch"])
        yield from self.guest.disk.parent.glob("*.stillframe-*")

    def qemu_usage(self) -> Usage:
        """Return what the running guest's QEMU has used."""
        record = self.cloud.libvirtd.run / "qemu" / f"{self.guest.name}.pid"
        return measure.of_qemu(int(record.read_text()))

    def writes_us(self, since: float, until: float) -> tuple[int, ...]:
        """Return the guest's longest write in each heartbeat of that time that had one."""
        beats = list(self.guest.console.beats)
        return tuple(longest for at, _, _, longest in beats if since <= at <= until and longest)

    def _guest(self, base: Path, name: str) -> Guest:
        wish = GuestWish(name=name, size_gib=self.case.size_gib, options=self.case.options)
        directory = self.cloud.directory / "guests"
        accelerator = (CACHE / "accelerator").read_text()
        return Guest(self.cloud.libvirtd, base, directory, wish, accelerator)


class Meter:
    """Measures what happens inside of its `with`; `sample` tells it."""

    def __init__(self, stage: Stage, tool: Tool, quiet_s: float) -> None:
        self._stage = stage
        self._tool = tool
        self._quiet_s = quiet_s
        self._space = Space(stage.scratch_files, lambda: measure.files_below([stage.temp]))
        self._figures: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._stage.evict()
        self._look_at_the_quiet_guest()
        self._began_epoch_s = time.time()
        self._rss_before_mib = self._resident_mib()
        self._tool.begin()
        self._qemu_before = self._stage.qemu_usage()
        self._tool_before = self._tool.usage()
        self._space.__enter__()
        self._began = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ended = time.monotonic()
        pauses_ms = self._stage.stop_since(self._began_epoch_s)
        self._space.__exit__(kind, error, trace)
        if error is not None:
            return
        tool = self._tool.usage() - self._tool_before
        usual = self._usual_a_second.times(time.monotonic() - self._began)
        qemu = self._stage.qemu_usage() - self._qemu_before - usual
        console = self._stage.guest.console
        self._figures = {
            "wall_s": ended - self._began,
            "pauses_ms": pauses_ms,
            "silent_ms": console.longest_gap_ms(self._began - _BEAT_BEFORE_S, ended),
            "read_bytes": max(0, round(tool.read_bytes + qemu.disk_read_bytes)),
            "written_bytes": max(0, round(tool.written_bytes + qemu.disk_written_bytes)),
            "scratch_bytes": self._space.scratch_bytes,
            "beyond_scratch_bytes": self._space.beyond_bytes,
            "cpu_s": tool.cpu_s,
            "qemu_cpu_s": qemu.cpu_s,
            "rss_before_mib": self._rss_before_mib,
            "rss_peak_mib": self._tool.rss_peak_mib(),
            "writes_before_us": self._quiet_writes_us,
            "writes_during_us": self._stage.writes_us(self._began, ended),
        }

    def sample(self, **known: Any) -> Sample:
        """Return the sample of a run that has ended; `known` overrides what was measured."""
        return Sample(case=self._stage.case.name, **self._figures | known)

    def _look_at_the_quiet_guest(self) -> None:
        began, before = time.monotonic(), self._stage.qemu_usage()
        time.sleep(self._quiet_s)
        took_s = time.monotonic() - began
        used = self._stage.qemu_usage() - before
        self._usual_a_second = used.times(1 / took_s) if self._quiet_s else Usage()
        self._quiet_writes_us = (
            self._stage.writes_us(began, began + took_s) if self._quiet_s else ()
        )

    def _resident_mib(self) -> float | None:
        return measure.resident_mib(self._tool.pid) if isinstance(self._tool, Daemon) else None


def _tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text().splitlines()[-lines:]) if log.exists() else "(there is none)"


def say(line: str) -> None:
    """Tell the person who waits how far it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


def settle() -> None:
    """Have what was written reach the disks before the next run begins."""
    os.sync()
