# SPDX-License-Identifier: Apache-2.0
"""Gives a guest back: patiently, and again and again later if that was in vain.

libvirt may hold a domain for minutes (it waits for QEMU, QEMU for a disk), and
its daemon may be away. So letting a guest run and ending its capture are tried
for a while; what is still not given back then stays marked in the journal, and
is tried again before the instance's next job, at the agent's next start and by
`Again` until it is done.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

import tenacity

from common import context
from common.errors import InstanceNotFound, JobInterrupted, StillframeError
from common.reports import DiskImage
from common.states import DISK_KINDS, JobState
from compute_agent import put_back
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
#: The sentinel tries meanwhile, and what else there is to undo must not wait for long.
_RESUME_PATIENCE_S = 30.0
_AGAIN_S = 5.0
#: What could not be given back is looked at so often, and ever less often while that is in vain.
_LOOK_S, _LOOK_MAX_S = 10.0, 60.0


def let_run(run: Run) -> None:
    """Undo a pause, trying for half a minute; else as `end_capture`."""
    _patiently(run, run.pause.undo, _RESUME_PATIENCE_S)


def end_capture(run: Run) -> None:
    """End the capture, trying for ten minutes (or until the agent stops).

    A guest that QEMU stopped for want of the space that is free again runs on.
    Raises the last failure; the job is then marked as not given back.
    """

    def end() -> None:
        try:
            run.capture.end()
        finally:
            # Also where something of it is left: there may be room again.
            with contextlib.suppress(InstanceNotFound):
                run.guest.run_on_after_io_error()

    _patiently(run, end, _PATIENCE_S)


def give_back_earlier(
    tools: Tools, guest: Guest, which: Callable[[Entry], bool] = lambda _entry: True
) -> None:
    """Give back what earlier jobs of this guest could not; raise if that fails again."""
    if not _left_on(tools, guest, which):
        return
    with tools.giving_back:
        for entry in _left_on(tools, guest, which):
            LOG.warning("Giving back what job %s had to leave", entry.job_id)
            give_back(tools, entry, guest, published=_published(entry))


def give_back_all(tools: Tools) -> None:
    """Try to give back whatever ended jobs had to leave on any guest; say what stays."""
    for entry in tools.journal.unreleased():
        with context.bound(context.from_wire(entry.context, entry.request.instance.uuid)):
            try:
                _give_back_or_up(tools, entry)
            except StillframeError as error:
                LOG.warning("What job %s left must stay for now: %s", entry.job_id, error)
            except Exception:
                LOG.exception("What job %s left must stay for now", entry.job_id)


def _give_back_or_up(tools: Tools, entry: Entry) -> None:
    try:
        give_back_earlier(tools, tools.hypervisor.guest(entry.request.instance.uuid))
    except InstanceNotFound:
        give_up(tools, entry)
        tools.journal.mark_released(entry.job_id)


def give_back(tools: Tools, entry: Entry, guest: Guest, *, published: Sequence[DiskImage]) -> None:
    """Let the guest run, end the capture and settle the checkpoint as the journal tells.

    `published` are the job's images, if they came to stand. Safe to repeat;
    raises what fails, and the entry then stays as it is.
    """
    if entry.request.kind in DISK_KINDS:
        put_back.end(entry.step, entry.facts, guest, tools.increments)
        tools.journal.mark_released(entry.job_id)
        return
    _run_on(tools, entry, guest)
    facts, targets = entry.facts, targets_of(entry.facts)
    plan = Plan(
        guest=guest,
        targets=targets,
        workspace=tools.directories.of_job(entry.job_id),
        reservations=tools.reservations,
    )
    make.by_method(facts["method"], plan).end()
    guest.run_on_after_io_error()
    if facts["keeps_checkpoint"] and published:
        capacities = {target.name: target.capacity_bytes for target in targets}
        tools.increments.settle(guest, entry.job_id, published, capacities)
    elif facts["keeps_checkpoint"]:
        tools.increments.give_up(guest)
    tools.journal.mark_released(entry.job_id)


def give_up(tools: Tools, entry: Entry) -> None:
    """Of a guest that this host has no more, keep what it wrote, and let go of the rest."""
    if entry.request.kind in DISK_KINDS:
        put_back.give_up(entry.step, entry.facts)
        return
    workspace = tools.directories.of_job(entry.job_id)
    if entry.facts["method"] == OverlayCapture.method:
        overlay.give_up(targets_of(entry.facts), workspace)
    tools.reservations.release(workspace.scratch.name)


class Again:
    """The service that tries again what could not be given back, until it is."""

    name = "giving back"

    def __init__(self, tools: Tools, sweep: Callable[[], bool] = lambda: True) -> None:
        self._tools = tools
        #: Removes what was begun and never made; tells whether nothing of that stays.
        self._sweep = sweep
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="giving-back", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Try no more; the next start does."""
        self._stopping.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        wait_s = _LOOK_S
        while not self._stopping.wait(wait_s):
            try:
                give_back_all(self._tools)
                is_done = self._sweep() and not self._tools.journal.unreleased()
            except Exception:
                # The journal may be away; the thread must outlive that.
                LOG.exception("What ended jobs left could not be looked at")
                is_done = False
            wait_s = _LOOK_S if is_done else min(wait_s * 2, _LOOK_MAX_S)


def _run_on(tools: Tools, entry: Entry, guest: Guest) -> None:
    """Resume and thaw, once, the guest of a job that ended inside its pause."""
    if entry.step != "pause":
        return
    if entry.facts["suspends"]:
        LOG.warning("Resuming the guest that the interrupted job had paused")
        guest.resume()
    if entry.facts["freezes"]:
        _thaw(guest, tools.settings.freeze_timeout_s)
    # Whoever pauses it from now on means it.
    tools.journal.note(entry.job_id, suspends=False, freezes=False)


def _thaw(guest: Guest, timeout_s: float) -> None:
    try:
        LOG.warning("Thawing what the interrupted job may have frozen")
        guest.thaw(timeout_s)
    except StillframeError as error:
        LOG.warning("Nothing could be thawed: %s", error)


def has_disk_to_put_back(entry: Entry) -> bool:
    """Tell whether an ended job left a disk that is not to be started from."""
    return entry.request.kind in DISK_KINDS and entry.step != put_back.PROVEN


def _left_on(tools: Tools, guest: Guest, which: Callable[[Entry], bool]) -> list[Entry]:
    """Return the ended jobs, such ones, that had to leave something on this guest."""
    left = [one for one in tools.journal.unreleased() if which(one)]
    return [entry for entry in left if entry.request.instance.uuid == guest.uuid]


def _published(entry: Entry) -> Sequence[DiskImage]:
    outcome = entry.outcome
    return outcome.images if outcome is not None and outcome.state is JobState.DONE else ()


def _patiently(run: Run, work: Callable[[], None], patience_s: float) -> None:
    job = run.job
    try:
        for attempt in _attempts(job, patience_s):
            with attempt:
                work()
    except Exception:
        run.tools.journal.mark_unreleased(job.entry.job_id)
        raise


def _attempts(job: Job, patience_s: float) -> tenacity.Retrying:
    patience = tenacity.stop_after_delay(patience_s)
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
