# SPDX-License-Identifier: Apache-2.0
"""QEMU's own event times, the proof that a capture's instant lay inside its pause.

QEMU stamps STOP, RESUME and each backup job's creation itself; libvirt passes
them on without tainting the domain. The connection feeds `Recorder`, a capture
reads the stretch that it needs.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import deque
from typing import Any

EVENTS = ("STOP", "RESUME", "JOB_STATUS_CHANGE")
_KEPT = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """One event: `at` is QEMU's wall clock, in seconds since 1970, to the microsecond."""

    at: float
    event: str
    job_id: str | None = None
    job_status: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PauseProof:
    """A pause as QEMU saw it; `instants` are the times at which its backup jobs began."""

    stopped_at: float
    instants: tuple[float, ...]
    resumed_at: float

    @property
    def instant_inside(self) -> bool | None:
        """Whether every backup job began inside the pause; None if none was seen to begin."""
        if not self.instants:
            return None
        return self.stopped_at <= min(self.instants) and max(self.instants) <= self.resumed_at

    @property
    def pause_ms(self) -> float:
        """How long the vCPUs stood still."""
        return (self.resumed_at - self.stopped_at) * 1e3


class Recorder:
    """Keeps the last stamps of each domain; thread-safe."""

    def __init__(self) -> None:
        self._stamps: dict[str, deque[Stamp]] = {}
        self._changed = threading.Condition()

    def record(self, domain_uuid: str, event: str, at: float, details: str | None) -> None:
        """Take an event from libvirt's event loop."""
        data: dict[str, Any] = json.loads(details) if details else {}
        stamp = Stamp(at=at, event=event, job_id=data.get("id"), job_status=data.get("status"))
        with self._changed:
            self._stamps.setdefault(domain_uuid, deque(maxlen=_KEPT)).append(stamp)
            self._changed.notify_all()

    def forget(self, domain_uuid: str) -> None:
        """Drop what is kept of a domain (it is gone, or a capture is over)."""
        with self._changed:
            self._stamps.pop(domain_uuid, None)

    def pause_since(self, domain_uuid: str, since: float, timeout_s: float) -> PauseProof | None:
        """Wait for the RESUME of the pause that began after `since` (epoch seconds).

        Returns None if QEMU's events did not come within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                stamps = [s for s in self._stamps.get(domain_uuid, ()) if s.at >= since]
                proof = pause_proof(stamps)
                left_s = deadline - time.monotonic()
                if proof is not None or left_s <= 0:
                    return proof
                self._changed.wait(left_s)


def pause_proof(stamps: list[Stamp]) -> PauseProof | None:
    """Return the first whole STOP..RESUME among `stamps`, and when the backups began."""
    stopped = next((s.at for s in stamps if s.event == "STOP"), None)
    if stopped is None:
        return None
    resumed = next((s.at for s in stamps if s.event == "RESUME" and s.at >= stopped), None)
    if resumed is None:
        return None
    instants = tuple(s.at for s in stamps if _is_backup_begin(s))
    return PauseProof(stopped_at=stopped, instants=instants, resumed_at=resumed)


def _is_backup_begin(stamp: Stamp) -> bool:
    is_created = stamp.event == "JOB_STATUS_CHANGE" and stamp.job_status == "created"
    return is_created and (stamp.job_id or "").startswith("backup-")
