# SPDX-License-Identifier: Apache-2.0
"""Jobs that only change a power state: pause, unpause, start, stop, reboot.

ACTIONS says what does each. One that the agent's end interrupted is gone on with
at the next start, unless what the guest then is shows that it was done.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from common import clock
from common.errors import DeadlinePassed
from common.messages import PowerRequest
from common.states import FIRST_TASK_STATE, JobKind, PowerState, TaskState
from compute_agent import release
from compute_agent.guest.domain import Guest
from compute_agent.jobs import Job
from compute_agent.tools import Tools

LOG = logging.getLogger(__name__)

_HARD = "HARD"
#: The fact in the journal: which run of the guest it was that the job found.
_RUN = "run"
#: What a guest is at when it was done.
_GOALS: dict[JobKind, PowerState] = {
    JobKind.PAUSE: PowerState.PAUSED,
    JobKind.UNPAUSE: PowerState.RUNNING,
    JobKind.START: PowerState.RUNNING,
    JobKind.STOP: PowerState.SHUTDOWN,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One change of one guest."""

    guest: Guest
    request: PowerRequest
    job: Job
    #: How long a guest may take to shut down by itself, in seconds.
    shutdown_timeout_s: float


class Powers:
    """Does these jobs with one host's tools."""

    def __init__(self, tools: Tools, *, shutdown_timeout_s: float) -> None:
        self._tools = tools
        self.shutdown_timeout_s = shutdown_timeout_s

    def run(self, job: Job) -> None:
        """Do what `job` asks for, and note what the guest then does."""
        request = job.entry.request
        if not isinstance(request, PowerRequest):
            raise TypeError(f"job {job.entry.job_id} changes no power state")
        guest = self._tools.hypervisor.guest(request.instance.uuid)
        if job.entry.step is None:
            # A disk that is still to be put back must not be started from, nor a stop be undone.
            release.give_back_earlier(self._tools, guest, release.has_disk_to_put_back)
            facts = {_RUN: guest.run_id()}
            self._tools.journal.begin_step(job.entry.job_id, request.kind, facts)
        elif _has_come_about(job, request, guest):
            job.result.power_state = guest.power_state()
            LOG.info("The %s had come about before the compute agent ended", request.kind)
            return
        job.begin_step(request.kind)
        job.tell(_task_state(request))
        asked = Asked(
            guest=guest, request=request, job=job, shutdown_timeout_s=self.shutdown_timeout_s
        )
        try:
            ACTIONS[request.kind](asked)
        finally:
            job.result.power_state = guest.power_state()
        LOG.info("Did %s: the guest is %s", request.kind, job.result.power_state.name.lower())


def _pause(asked: Asked) -> None:
    if asked.guest.power_state() is not PowerState.PAUSED:
        asked.guest.suspend()


def _unpause(asked: Asked) -> None:
    asked.guest.resume()


def _start(asked: Asked) -> None:
    asked.guest.start()


def _stop(asked: Asked) -> None:
    """Let the guest shut down by itself, in time; else cut its power, as Nova does."""
    if asked.request.clean_shutdown and asked.guest.power_state() is PowerState.RUNNING:
        if asked.guest.shut_down(asked.shutdown_timeout_s, asked.job.stopped):
            return
        asked.job.raise_if_stopped()
        LOG.warning(
            "The guest has not shut down in %.0f s; cutting its power", asked.shutdown_timeout_s
        )
    asked.guest.cut_power()


def _reboot(asked: Asked) -> None:
    """Off and on again, not a reset: the guest comes up with its definition as it is now."""
    if asked.request.reboot_type == _HARD:
        asked.guest.cut_power()
    else:
        _stop(asked)
    asked.guest.start()


ACTIONS: dict[JobKind, Callable[[Asked], None]] = {
    JobKind.PAUSE: _pause,
    JobKind.UNPAUSE: _unpause,
    JobKind.START: _start,
    JobKind.STOP: _stop,
    JobKind.REBOOT: _reboot,
}


def _task_state(request: PowerRequest) -> TaskState:
    is_hard = request.kind is JobKind.REBOOT and request.reboot_type == _HARD
    return TaskState.REBOOTING_HARD if is_hard else FIRST_TASK_STATE[request.kind]


def _has_come_about(job: Job, request: PowerRequest, guest: Guest) -> bool:
    """Tell whether what had begun before the agent's end was done; if not, it is done now.

    Raises DeadlinePassed where it is too late for that.
    """
    if request.kind is JobKind.REBOOT:
        if not guest.is_active():
            return False  # we switched it off: however late, it does not stay so
        # Another run than the one that was to end: it was started again.
        has = job.entry.facts.get(_RUN) not in (None, guest.run_id())
    else:
        has = guest.power_state() is _GOALS[request.kind]
    is_late = request.deadline is not None and request.deadline < clock.epoch_s()
    if is_late and not has:
        raise DeadlinePassed(f"the compute agent ended during the {request.kind}; ask again")
    return has
