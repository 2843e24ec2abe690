# SPDX-License-Identifier: Apache-2.0
"""A guest's power: its button, and its cable."""

from __future__ import annotations

import contextlib
import threading
import time

import libvirt

from common.states import PowerState
from compute_agent.guest.errors import HypervisorError, translated
from compute_agent.guest.handle import Handle

_LOOK_S = 0.1
#: A guest that still boots misses its button: it is pressed again, as Nova does.
_PRESS_AGAIN_S = 10.0

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


class Power(Handle):
    """What starts, stops and halts a guest."""

    def power_state(self) -> PowerState:
        """Return what the guest is doing now."""
        with translated("asking for its state"):
            state, _reason = self._domain.state()
        return _POWER_STATES.get(state, PowerState.NOSTATE)

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

    def run_id(self) -> str:
        """Return what is another after each start, and empty while it is off."""
        # Asked anew: the id of libvirt's handle is that of when it was found.
        return self.describe().get("id", "")

    def start(self) -> None:
        """Switch it on; harmless on a guest that is on."""
        if self.is_active():
            return
        try:
            with translated("starting it"):
                self._domain.create()
        except HypervisorError:
            if not self.is_active():
                raise

    def shut_down(self, timeout_s: float, stopped: threading.Event) -> bool:
        """Press its power button and wait until it is off; False if it is not by then.

        Gives up sooner when `stopped` is set.
        """
        press_at = time.monotonic()
        deadline = press_at + timeout_s
        while self.is_active():
            now = time.monotonic()
            if now >= deadline:
                return False
            if now >= press_at:
                self._press_button()
                press_at = now + _PRESS_AGAIN_S
            if stopped.wait(_LOOK_S):
                return False
        return True

    def cut_power(self) -> None:
        """Switch it off at once; harmless on a guest that is off."""
        if not self.is_active():
            return
        try:
            with translated("cutting its power"):
                self._domain.destroy()
        except HypervisorError:
            # A guest whose time to shut down is over may do so just now.
            if self.is_active():
                raise

    def undefine(self) -> None:
        """Have libvirt forget it, and all that it keeps of it; harmless if it has."""
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        )
        with translated("undefining it"):
            self._domain.undefineFlags(flags)

    def _press_button(self) -> None:
        # A guest without one, or that goes off meanwhile, is as one that does not obey.
        with contextlib.suppress(HypervisorError), translated("pressing its power button"):
            self._domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
