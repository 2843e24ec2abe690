# SPDX-License-Identifier: Apache-2.0
"""What is done to one guest, each method one libvirt call or two.

Every method raises one of `guest.errors` (or InstanceNotFound, InstanceBusy)
in a tenant's words; libvirt's own are in the log.
"""

from __future__ import annotations

import logging
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable

import libvirt

from common.errors import InstanceBusy
from common.states import PowerState
from compute_agent.guest import description
from compute_agent.guest.errors import translated
from compute_agent.guest.stamps import PauseProof, Recorder

LOG = logging.getLogger(__name__)

_JOB_END_TIMEOUT_S = 30.0
_LOOK_S = 0.02

_POWER_STATES: dict[int, PowerState] = {
    libvirt.VIR_DOMAIN_NOSTATE: PowerState.NOSTATE,
    libvirt.VIR_DOMAIN_RUNNING: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTOFF: PowerState.SHUTDOWN,
    libvirt.VIR_DOMAIN_CRASHED: PowerState.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: PowerState.SUSPENDED,
}


class Guest:
    """One domain of this host. `find` looks it up again after libvirt was restarted."""

    def __init__(
        self, domain: libvirt.virDomain, find: Callable[[str], libvirt.virDomain], stamps: Recorder
    ) -> None:
        self._found = domain
        self._find = find
        self._stamps = stamps
        self.uuid: str = domain.UUIDString()
        self.domain_name: str = domain.name()

    @property
    def _domain(self) -> libvirt.virDomain:
        """The domain on a connection that lives: a snapshot may outlast the one it began on."""
        if not self._found.connect().isAlive():
            self._found = self._find(self.uuid)
        return self._found

    def power_state(self) -> PowerState:
        """Return what the guest is doing now."""
        with translated("asking for its state"):
            state, _reason = self._domain.state()
        return _POWER_STATES.get(state, PowerState.NOSTATE)

    def is_active(self) -> bool:
        """Tell whether a QEMU process runs the guest (running, paused or suspended)."""
        with translated("asking for its state"):
            return bool(self._domain.isActive())

    def was_shut_down_in_order(self) -> bool:
        """Tell whether the guest is off because its own system shut down."""
        with translated("asking for its state"):
            state, reason = self._domain.state()
        return (state, reason) == (
            libvirt.VIR_DOMAIN_SHUTOFF,
            libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN,
        )

    def describe(self) -> ET.Element:
        """Return the `<domain>` element as it stands (the live one of an active guest)."""
        with translated("reading its definition"):
            return description.parse(self._domain.XMLDesc())

    def capacity_bytes(self, target: str) -> int:
        """Return the virtual size of the disk `target` ("vda")."""
        with translated(f"reading the size of {target}"):
            capacity, _allocation, _physical = self._domain.blockInfo(target)
        return int(capacity)

    def suspend(self) -> None:
        """Stop the vCPUs; returns when they stand."""
        with translated("pausing it"):
            self._domain.suspend()

    def resume(self) -> None:
        """Let the vCPUs run on; returns when they do. Harmless on a guest that runs."""
        try:
            self._domain.resume()
        except libvirt.libvirtError:
            if self.power_state() != PowerState.RUNNING:
                with translated("resuming it"):
                    self._domain.resume()

    def begin_backup(self, backup_xml: str) -> None:
        """Begin a pull-mode backup job into scratch files that exist already.

        libvirt must never create the scratch itself: while it does, a suspend
        from anybody can slip in, and QEMU 7.2 then aborts.
        """
        with translated("fixing the point in time"):
            self._domain.backupBegin(
                backup_xml, None, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
            )

    def backup_description(self) -> str | None:
        """Return the XML of the backup job open on the guest, or None if there is none."""
        try:
            return str(self._domain.backupGetXMLDesc())
        except libvirt.libvirtError as error:
            if error.get_error_code() in (
                libvirt.VIR_ERR_NO_DOMAIN_BACKUP,
                libvirt.VIR_ERR_OPERATION_INVALID,
                libvirt.VIR_ERR_NO_DOMAIN,
            ):
                return None
            with translated("looking for a backup job"):
                raise

    def end_backup(self) -> None:
        """End the backup job of the guest; harmless if there is none (any more).

        Returns when the job is gone: libvirt's own call only asks for it.
        Raises InstanceBusy if it is still there after half a minute.
        """
        try:
            self._domain.abortJob()
        except libvirt.libvirtError as error:
            if self.backup_description() is not None:
                with translated("ending the backup job"):
                    raise
            LOG.debug("No backup job to end: %s", error)
        deadline = time.monotonic() + _JOB_END_TIMEOUT_S
        while self.backup_description() is not None:
            if time.monotonic() > deadline:
                raise InstanceBusy("the hypervisor does not end the backup job")
            time.sleep(_LOOK_S)

    def pause_since(self, since: float, timeout_s: float) -> PauseProof | None:
        """Return the pause that began after `since` (epoch seconds), by QEMU's own stamps."""
        return self._stamps.pause_since(self.uuid, since, timeout_s)
