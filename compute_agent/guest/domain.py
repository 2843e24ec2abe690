# SPDX-License-Identifier: Apache-2.0
"""What is done to one guest, each method one libvirt call or two.

Every method raises one of `guest.errors` (or InstanceNotFound, InstanceBusy)
in a tenant's words; libvirt's own are in the log.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import libvirt

from compute_agent.guest import description
from compute_agent.guest.backup_jobs import BackupJobs
from compute_agent.guest.definition import Definition
from compute_agent.guest.errors import translated
from compute_agent.guest.overlays import Overlays
from compute_agent.guest.power import Power
from compute_agent.guest.stamps import PauseProof, Recorder

LOG = logging.getLogger(__name__)

_AGENT_CHANNEL = "org.qemu.guest_agent.0"
#: As in the names of libvirt's block statistics.
_WAYS = ("rd", "wr")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DiskLatency:
    """Counters since the guest's start: its reads, or its writes, and the time they took."""

    operations: int
    total_ns: int

    @property
    def mean_ns(self) -> float:
        """What one took on the average, in nanoseconds."""
        return self.total_ns / self.operations if self.operations else 0.0


class Guest(BackupJobs, Overlays, Power, Definition):
    """One domain of this host and all that is done to it."""

    def __init__(
        self, domain: libvirt.virDomain, find: Callable[[str], libvirt.virDomain], stamps: Recorder
    ) -> None:
        super().__init__(domain, find)
        self._stamps = stamps

    def was_shut_down_in_order(self) -> bool:
        """Tell whether the guest is off because its own system shut down."""
        with translated("asking for its state"):
            state, reason = self._domain.state()
        return (state, reason) == (
            libvirt.VIR_DOMAIN_SHUTOFF,
            libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN,
        )

    def process_owner(self) -> tuple[int, int] | None:
        """Return uid and gid that its QEMU runs as, where libvirt tells.

        A device's owner does not: libvirt changes it in the /dev that this QEMU alone sees.
        """
        return description.process_owner(self.describe())

    def is_idle(self) -> bool:
        """Tell whether libvirt is at no job of the (active) guest's: migration, save, backup."""
        with translated("asking for its jobs"):
            return bool(self._domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE)

    def capacity_bytes(self, target: str) -> int:
        """Return the virtual size of the disk `target` ("vda")."""
        with translated(f"reading the size of {target}"):
            capacity, _allocation, _physical = self._domain.blockInfo(target)
        return int(capacity)

    def run_on_after_io_error(self) -> None:
        """Let a guest run on that QEMU stopped because the scratch was full; harmless otherwise."""
        with translated("asking for its state"):
            state = tuple(self._domain.state())
        if state == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR):
            LOG.warning("The guest stood still for want of space; letting it run on")
            self.resume()

    def has_agent(self) -> bool:
        """Tell whether a guest agent is connected at the moment."""
        channels = self.describe().iterfind("devices/channel/target")
        return any(
            one.get("name") == _AGENT_CHANNEL and one.get("state") == "connected"
            for one in channels
        )

    def freeze(self, timeout_s: float) -> int:
        """Have the guest agent freeze the file systems; return how many it says it froze.

        The agent has `timeout_s` to answer, in whole seconds.
        """
        with translated("freezing its file systems"), self._agent_answers_within(timeout_s):
            return int(self._domain.fsFreeze())

    def thaw(self, timeout_s: float) -> int:
        """Have the guest agent thaw the file systems; return how many it says were frozen."""
        with translated("thawing its file systems"), self._agent_answers_within(timeout_s):
            return int(self._domain.fsThaw())

    def disk_latency(self) -> tuple[DiskLatency, ...]:
        """Return what libvirt has counted of the guest's own reads, and of its writes.

        Of all disks together; apart, for a read is often next to nothing.
        """
        with translated("reading its block statistics"):
            disks = description.disks(self.describe())
            usable = [disk.target for disk in disks if disk.path and not disk.read_only]
            stats = [self._domain.blockStatsFlags(target) for target in usable]
        return tuple(
            DiskLatency(
                operations=sum(one.get(f"{way}_operations", 0) for one in stats),
                total_ns=sum(one.get(f"{way}_total_times", 0) for one in stats),
            )
            for way in _WAYS
        )

    def pause_since(self, since: float, timeout_s: float) -> PauseProof | None:
        """Return the pause that began after `since` (epoch seconds), by QEMU's own stamps."""
        return self._stamps.pause_since(self.uuid, since, timeout_s)
