# SPDX-License-Identifier: Apache-2.0
"""What counts as seeing a guest run from its new disk, before the old one is given up.

PROOFS says how each word of `[rebuild] proof` is seen. Called by `rebuild`.
"""

from __future__ import annotations

import dataclasses
import logging
import socket
import time
from collections.abc import Callable

from common.errors import JobFailed
from common.states import PowerState
from compute_agent.guest.domain import Guest
from compute_agent.jobs import Job

LOG = logging.getLogger(__name__)

_LOOK_S = 0.2
_CONNECT_TIMEOUT_S = 2.0


class RebuildUnproven(JobFailed):
    """The guest was not seen to run from its new disk; the old one is put back."""

    code = "rebuild_unproven"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProofSettings:
    """The options of [rebuild], as plain values."""

    #: "running", "agent" or "port".
    proof: str
    #: How long a guest must have run.
    running_s: float
    #: How long a guest agent, or a port, may take to answer.
    timeout_s: float
    port: int


def see(guest: Guest, job: Job, settings: ProofSettings) -> None:
    """Return when the guest is seen to run; raise RebuildUnproven if it is not, in time.

    Raises the job's own reason as soon as it is to end.
    """
    looks = PROOFS[settings.proof]
    began, run_id = time.monotonic(), guest.run_id()
    while True:
        if guest.power_state() is not PowerState.RUNNING or guest.run_id() != run_id:
            raise RebuildUnproven("the guest did not go on running from its new disk")
        passed_s = time.monotonic() - began
        if looks(guest, settings, passed_s):
            LOG.info("The guest is seen to run (%s) after %.1f s", settings.proof, passed_s)
            return
        if settings.proof != "running" and passed_s >= settings.timeout_s:
            raise RebuildUnproven(
                f"the guest did not come up from its new disk: {_SAID[settings.proof]} in "
                f"{settings.timeout_s:.0f} s"
            )
        job.stopped.wait(_LOOK_S)
        job.raise_if_stopped()


def _has_run(_guest: Guest, settings: ProofSettings, passed_s: float) -> bool:
    return passed_s >= settings.running_s


def _agent_answers(guest: Guest, _settings: ProofSettings, _passed_s: float) -> bool:
    return guest.has_agent() and guest.agent_answers()


def _port_is_open(guest: Guest, settings: ProofSettings, _passed_s: float) -> bool:
    return any(_connects(address, settings.port) for address in guest.addresses())


def _connects(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), _CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


#: Whether it is seen now; the last argument is for how long it has been looked.
PROOFS: dict[str, Callable[[Guest, ProofSettings, float], bool]] = {
    "running": _has_run,
    "agent": _agent_answers,
    "port": _port_is_open,
}
_SAID = {"agent": "its guest agent did not answer", "port": "its port was not open"}
