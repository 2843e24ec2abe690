# SPDX-License-Identifier: Apache-2.0
"""What `snapshot` measures: disks, guests and how often; and the disks themselves."""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

#: The base image: 1 GiB with data for 275 MiB of qcow2; more is put behind its partitions.
BASE_MIB = 1024
PAYLOAD_MIB = 256
_FILL_FROM_MIB = BASE_MIB + 16
_FILL_PIECE_MIB = 64
_MIB = 2**20
_FRAGMENT_BYTES = 64 << 10
#: A microsecond count that never comes: the guest only beats.
_NEVER_US = 10**12


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A guest: its disk's virtual size, what the disk holds, whether the guest writes."""

    name: str
    size_gib: int
    data_mib: int
    writes: bool
    #: Single clusters of data, all over the disk.
    pieces: int = 0

    @property
    def options(self) -> str:
        """Options for the guest's `pulse`."""
        return "" if self.writes else f"pulse.record_us={_NEVER_US} pulse.append_us={_NEVER_US}"

    @property
    def fill_from_bytes(self) -> int:
        """Where the data behind the base image's partitions begins."""
        return _FILL_FROM_MIB * _MIB


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How often a case is measured."""

    case: Case
    rounds: int
    #: In so many of the rounds, the methods that are no headline run, too.
    extra_rounds: int
    #: In each round: stops of each kind, so many times.
    stops: int
    #: So long after the whole began, only the headlines of the first round still run.
    until_s: float = math.inf


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    courses: tuple[Course, ...]
    #: The guest is looked at for so long, undisturbed, before each run.
    quiet_s: float
    #: Only these methods, if any are named.
    only: tuple[str, ...] = ()
    #: Where Glance keeps its images; None: on the disk that the guests are on.
    image_store: Path | None = None


CASES = (
    Case(name="2 GiB, idle", size_gib=2, data_mib=578, writes=False),
    Case(name="2 GiB, writing", size_gib=2, data_mib=578, writes=True),
    Case(name="10 GiB, idle", size_gib=10, data_mib=3072, writes=False),
    Case(name="10 GiB, writing", size_gib=10, data_mib=3072, writes=True),
)
_QUICK_IDLE, _QUICK_WRITING = CASES[:2]
QUICK = Plan(
    courses=(
        Course(case=_QUICK_IDLE, rounds=3, extra_rounds=1, stops=4, until_s=160),
        Course(case=_QUICK_WRITING, rounds=2, extra_rounds=0, stops=0, until_s=230),
    ),
    quiet_s=0.7,
)


def full(rounds: int) -> Plan:
    """Return the plan of everything, in so many rounds."""
    courses = [Course(case=case, rounds=rounds, extra_rounds=rounds, stops=4) for case in CASES]
    return Plan(courses=tuple(courses), quiet_s=2.0)


def make_base(image: Path, directory: Path, size_gib: int, data_mib: int) -> Path:
    """Make a base image of that size and data, with the guest's kernel beside it.

    A cloud's instance has its data in the base image: an overlay with next to
    nothing in it comes on top of this.
    """
    directory.mkdir(parents=True)
    for name in ("vmlinuz", "initrd"):
        (directory / name).symlink_to(image / name)
    disk = directory / "disk.qcow2"
    shutil.copyfile(image / "disk.qcow2", disk)
    subprocess.run(["qemu-img", "resize", "-q", str(disk), f"{size_gib}G"], check=True, timeout=60)
    missing_mib = max(0, data_mib - disk.stat().st_size // _MIB)
    starts = range(0, missing_mib, _FILL_PIECE_MIB)
    qemu_io(
        disk,
        # Bytes that are no zeros: data like any other to whoever reads them.
        (
            f"write -q -P {1 + at // _FILL_PIECE_MIB % 255} {_FILL_FROM_MIB + at}M "
            f"{min(_FILL_PIECE_MIB, missing_mib - at)}M"
            for at in starts
        ),
    )
    return directory


def fragment(disk: Path, size_gib: int, pieces: int) -> None:
    """Write single clusters all over a disk: as many stretches in its map."""
    room_bytes = (size_gib * 1024 - _FILL_FROM_MIB) * _MIB
    step = room_bytes // pieces // _FRAGMENT_BYTES * _FRAGMENT_BYTES
    offsets = (_FILL_FROM_MIB * _MIB + at * step for at in range(pieces))
    qemu_io(disk, (f"write -q -P 165 {offset} {_FRAGMENT_BYTES}" for offset in offsets))


def qemu_io(disk: Path, commands: Iterable[str]) -> None:
    """Run qemu-io's commands on a qcow2 disk that nobody has open."""
    subprocess.run(
        ["qemu-io", "-f", "qcow2", str(disk)],
        input="\n".join([*commands, "flush", "quit\n"]),
        text=True,
        check=True,
        capture_output=True,
        timeout=600,
    )
