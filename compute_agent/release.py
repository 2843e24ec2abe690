# SPDX-License-Identifier: Apache-2.0
"""Gives a guest back: patiently, and once more later if that was in vain.

libvirt may hold a domain for minutes (it waits for QEMU, QEMU for a disk), and
its daemon may be away. So ending a capture is tried for a while; what is still
not given back then stays marked in the journal, and is put right before the
instance's next job and at the agent's next start. Called by `snapshot` and
`recovery`.
"""

from __future__ import annotations

import logging

import tenacity

from common.errors import InstanceNotFound, JobInterrupted, StillframeError
from compute_agent.capture import make, overlay
from compute_agent.capture.base import Plan
from compute_agent.capture.overlay import OverlayCapture
from compute_agent.guest.domain import Guest
from compute_agent.jobs import Job
from compute_agent.journal import Entry
from compute_agent.run import Run, targets_of
from compute_agent.tools import Tools

LOG = logging.getLogger(__name__)

_PATIENCE_S = 600.0
_AGAIN_S = 5.0


def end_capture(run: Run) -> None:
    """End the capture, trying for ten minutes (or until the agent stops).

    Raises the last failure; the job is then marked as not given back.
    """
    job = run.job
    try:
        for attempt in _attempts(job):
            with attempt:
                run.capture.end()
    except Exception:
        run.tools.journal.mark_unreleased(job.entry.job_id)
        raise


def release_earlier(tools: Tools, guest: Guest) -> None:
    """Give back what earlier jobs of this guest could not; raise if that fails again."""
    for entry in tools.journal.unreleased():
        if entry.request.instance.uuid == guest.uuid:
            LOG.warning("Giving back what job %s had to leave", entry.job_id)
            give_back(tools, entry, guest)


def give_back(tools: Tools, entry: Entry, guest: Guest) -> None:
    """End the capture that the journal tells of; safe to repeat.

    Raises what ending it raises; the entry then stays as it is.
    """
    facts = entry.facts
    plan = Plan(
        guest=guest,
        targets=targets_of(facts),
        workspace=tools.directories.of_job(entry.job_id),
        reservations=tools.reservations,
    )
    make.by_method(facts["method"], plan).end()
    guest.run_on_after_io_error()
    tools.journal.mark_released(entry.job_id)


def give_up(tools: Tools, entry: Entry) -> None:
    """Of a guest that this host has no more, keep what it wrote, and let go of the rest."""
    workspace = tools.directories.of_job(entry.job_id)
    if entry.facts["method"] == OverlayCapture.method:
        overlay.give_up(targets_of(entry.facts), workspace)
    tools.reservations.release(workspace.scratch.name)


def _attempts(job: Job) -> tenacity.Retrying:
    patience = tenacity.stop_after_delay(_PATIENCE_S)
    return tenacity.Retrying(
        stop=lambda state: patience(state) or _is_leaving(job),
        wait=tenacity.wait_fixed(_AGAIN_S),
        retry=tenacity.retry_if_exception(_may_pass),
        before_sleep=_say,
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, StillframeError) and not isinstance(error, InstanceNotFound)


def _is_leaving(job: Job) -> bool:
    return job.stopped.is_set() and isinstance(job.why_stopped, JobInterrupted)


def _say(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    LOG.warning("The guest cannot be given back yet, trying again in %.0f s: %s", _AGAIN_S, error)
