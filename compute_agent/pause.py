# SPDX-License-Identifier: Apache-2.0
"""The stop of a guest around a capture: freeze, suspend ... resume, thaw.

Called by the steps `pause` and `resume` of `snapshot`. The sentinel watches
from before the first of it until after the last. A freeze is asked for by the
request, the configuration or the properties that Nova honours
(`hw_qemu_guest_agent`, `os_require_quiesce`); a thaw always follows.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import time
from collections.abc import Mapping

from common import clock
from common.errors import CaptureFailed, StillframeError
from common.reports import PauseStamps
from common.states import PowerState
from compute_agent.guest.domain import Guest
from compute_agent.sentinel import Sentinel

LOG = logging.getLogger(__name__)

_STAMPS_TIMEOUT_S = 2.0
_TRUE = frozenset({"1", "t", "true", "on", "y", "yes"})


class Freeze(enum.Enum):
    """What is done about the guest's file systems."""

    NEVER = "never"
    #: Frozen if the guest agent does it; else the snapshot is as after a power failure.
    TRY = "try"
    #: Frozen, or there is no snapshot.
    REQUIRE = "required"


def freeze_policy(wanted: str, image_properties: Mapping[str, str]) -> Freeze:
    """Return what "never", "auto" or "required" means for an instance with these properties."""
    if wanted != "auto":
        return Freeze.REQUIRE if wanted == "required" else Freeze.NEVER
    if _is_true(image_properties, "os_require_quiesce"):
        return Freeze.REQUIRE
    return Freeze.TRY if _is_true(image_properties, "hw_qemu_guest_agent") else Freeze.NEVER


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long the guest may take to freeze or thaw, in seconds."""

    freeze_timeout_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A stop that is over; without `stamps` QEMU did not tell, and the length is what we saw."""

    pause_ms: float
    instant_inside: bool | None = None
    stamps: PauseStamps | None = None


class Pause:
    """One stop: `begin`, the capture, `end`; `undo` after a failure anywhere between."""

    def __init__(
        self,
        guest: Guest,
        sentinel: Sentinel,
        *,
        suspends: bool,
        freeze: Freeze,
        limits: Limits,
    ) -> None:
        self._guest = guest
        self._sentinel = sentinel
        self.suspends = suspends
        self.freeze = freeze
        self._limits = limits
        #: Wall clock of the stop (or, without one, of the capture), seconds since 1970.
        self.began_at = 0.0
        self._ended_at = 0.0
        self._suspended_at = 0.0
        self._resumed_at = 0.0
        self._frozen_at = 0.0
        self._frozen = 0
        self.freeze_ms: float | None = None
        self._may_be_frozen = False
        self._stands = False
        self._held = False
        self._armed = False

    @property
    def froze(self) -> bool:
        """Every file system that was frozen before the capture was still frozen after it."""
        return self._held

    def begin(self) -> None:
        """Freeze and suspend, as far as this run does; raise CaptureFailed if a freeze must and
        does not succeed."""
        freezes = self.freeze is not Freeze.NEVER
        if freezes:
            self._arm(self._sentinel.budget_s + self._limits.freeze_timeout_s, resumes=False)
            self._freeze()
        # Whoever paused the guest since it was looked at means it.
        self.suspends = self.suspends and self._guest.power_state() is PowerState.RUNNING
        if freezes or self.suspends:
            # Anew after a freeze: a guest agent that was slow has used up the time.
            self._arm(self._sentinel.budget_s, resumes=self.suspends)
        self.began_at = clock.epoch_s()
        self._suspended_at = time.monotonic()
        self._stands = self.suspends
        if self.suspends:
            self._guest.suspend()

    def end(self) -> None:
        """Let the guest run on and its file systems be written to; the capture is over."""
        self._ended_at = clock.epoch_s()
        if self.suspends:
            self._guest.resume()
        self._stands = False
        self._resumed_at = time.monotonic()
        if self._may_be_frozen:
            self._sentinel.resumed(self._guest.uuid)
            self._held = self._thaw()
        self._disarm()

    def undo(self) -> None:
        """Whatever failed, the guest runs first; a stop that is over is not ours to end."""
        if not self._armed:
            return
        if self._stands:
            self._guest.resume()
            self._stands = False
        if self._may_be_frozen:
            self._sentinel.resumed(self._guest.uuid)
            self._thaw()
        self._disarm()

    def proven(self, backup_jobs: int) -> Stop | None:
        """Return what the stop was like by QEMU's own stamps; None if there was none.

        The capture's begin and end, and the begin of each of QEMU's
        `backup_jobs`, must lie between the two.
        """
        if not self.suspends:
            return None
        proof = self._guest.pause_since(self.began_at, _STAMPS_TIMEOUT_S)
        if proof is None:
            return Stop(pause_ms=(self._resumed_at - self._suspended_at) * 1e3)
        return Stop(
            pause_ms=proof.pause_ms,
            instant_inside=len(proof.instants) >= backup_jobs
            and proof.instant_inside is not False
            and self._ended_at <= proof.resumed_at,
            stamps=PauseStamps(
                stopped_at=proof.stopped_at, instants=proof.instants, resumed_at=proof.resumed_at
            ),
        )

    def _arm(self, budget_s: float, *, resumes: bool) -> None:
        self._armed = True
        thaws = self.freeze is not Freeze.NEVER
        self._sentinel.arm(self._guest.uuid, resumes=resumes, thaws=thaws, budget_s=budget_s)

    def _freeze(self) -> None:
        if not self._guest.has_agent():
            self._cannot_freeze("its guest agent does not run")
            return
        self._may_be_frozen = True
        began = time.monotonic()
        try:
            self._frozen = self._guest.freeze(self._limits.freeze_timeout_s)
        except StillframeError as error:
            # It may freeze yet, once it wakes up: thaw whatever it did.
            self._thaw()
            self._cannot_freeze(error.message)
            return
        self._frozen_at = time.monotonic()
        if self._frozen:
            LOG.info(
                "Froze %d file systems in %.0f ms", self._frozen, (self._frozen_at - began) * 1e3
            )
        else:
            self._cannot_freeze("its guest agent froze nothing")

    def _cannot_freeze(self, why: str) -> None:
        if self.freeze is Freeze.REQUIRE:
            raise CaptureFailed(
                f"the instance's file systems must be frozen for a snapshot, and cannot be: {why}"
            )
        LOG.warning("The file systems are not frozen (%s): the snapshot is crash-consistent", why)

    def _thaw(self) -> bool:
        """Thaw; True if what had been frozen had stayed so until now."""
        try:
            thawed = self._guest.thaw(self._limits.freeze_timeout_s)
        except StillframeError as error:
            # Still armed: the sentinel tries again when its budget is over.
            LOG.error("The file systems could not be thawed, trying again: %s", error)
            return False
        self._may_be_frozen = False
        if not self._frozen:
            return False
        self.freeze_ms = (time.monotonic() - self._frozen_at) * 1e3
        LOG.info("Thawed %d file systems after %.0f ms", thawed, self.freeze_ms)
        if thawed < self._frozen:
            LOG.warning("Only %d of %d file systems had stayed frozen", thawed, self._frozen)
        return thawed >= self._frozen

    def _disarm(self) -> None:
        if self._armed and not self._may_be_frozen:
            self._armed = False
            self._sentinel.disarm(self._guest.uuid)


def _is_true(properties: Mapping[str, str], name: str) -> bool:
    return properties.get(name, "").strip().lower() in _TRUE
