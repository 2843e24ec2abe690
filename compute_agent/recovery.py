# SPDX-License-Identifier: Apache-2.0
"""What a starting agent does about the jobs that its predecessor left open.

Runs once, before anything is consumed. A job that had not begun is simply submitted
(but for a late rebuild, of which its user may have been told that it failed), and so
is one whose frozen view still stands: its upload begins again, and a rebuild whose
new disk is in its place. Any other is undone by what the journal says of it: the
guest is resumed if we had paused it, the capture ended, the half-made image removed,
the old disk put back, and the job ends in `error` with its reason; one whose image
was already published ends in `done`. Workspaces that no entry owns are removed too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from common import clock, context
from common.errors import JobInterrupted
from common.states import DISK_KINDS, IMAGE_KINDS, QUICK_KINDS, JobKind
from compute_agent import rebuild, release, take_up
from compute_agent.capture.workspace import Workspace
from compute_agent.increments import give_up_all
from compute_agent.jobs import Job, Jobs, Reports
from compute_agent.journal import Entry
from compute_agent.tools import Tools

LOG = logging.getLogger(__name__)


class Recovery:
    """A service that does its work in `start`; `undo` is each kind's own (snapshot's `recover`)."""

    name = "recovery"

    def __init__(
        self,
        undo: Mapping[JobKind, Callable[[Job], bool]],
        *,
        host: str,
        tools: Tools,
        jobs: Jobs,
        reports: Reports,
    ) -> None:
        self._undo = undo
        #: Removes what was begun and never made, but for what is busy.
        self.sweep: Callable[[Callable[[], Collection[str]]], bool] = lambda _: True
        self._host = host
        self._tools = tools
        self._journal = tools.journal
        self._jobs = jobs
        self._reports = reports
        self._directories = tools.directories
        self._hypervisor = tools.hypervisor
        self._increments = tools.increments

    def start(self) -> None:
        """Put every open entry right."""
        entries = self._journal.open_entries()
        release.give_back_all(self._tools)
        going_on = [entry for entry in entries if self._goes_on(entry)]
        for entry in entries:
            if entry not in going_on:
                self._end(entry)
        self.sweep(lambda: {entry.request.instance.uuid for entry in going_on})
        # QEMU may still write into the scratch of a job that is open on its guest.
        in_use = [*self._journal.unreleased(), *going_on]
        self._remove_leftovers(keep=[self._directories.of_job(one.job_id) for one in in_use])
        give_up_all(
            self._increments,
            self._hypervisor.guest,
            but={entry.request.instance.uuid for entry in in_use},
        )
        for entry in going_on:
            LOG.info("Job %s was accepted before the restart; it goes on", entry.job_id)
            self._jobs.submit(entry)

    def stop(self, deadline: float) -> None:
        """Nothing runs."""

    def _goes_on(self, entry: Entry) -> bool:
        """Tell whether a job has not begun yet, is done in moments, or its view still stands."""
        try:
            is_quick = entry.request.kind in QUICK_KINDS
            if entry.step is None:
                return not _is_too_late(entry)
            goes_on = is_quick or rebuild.goes_on(entry)
            return goes_on or take_up.stands(self._tools, entry)
        except Exception:
            LOG.exception("Job %s cannot be gone on with", entry.job_id)
            return False

    def _end(self, entry: Entry) -> None:
        """Put one entry right and end its job."""
        job, kind = Job(entry, self._host, self._reports), entry.request.kind
        with context.bound(job.context):
            LOG.warning(
                "Job %s was interrupted in step %s by the end of the agent; putting it right",
                entry.job_id,
                entry.step,
            )
            try:
                was_published = self._undo[kind](job)
            except Exception:
                # The journal may be another version's; the others must still get their turn.
                LOG.exception("Job %s could not be put right", entry.job_id)
                is_left = kind in IMAGE_KINDS | DISK_KINDS
                if is_left:
                    self._journal.mark_unreleased(entry.job_id)
                # Of other kinds nothing counts before they were put right.
                was_published = is_left and entry.step == "release"
            error = JobInterrupted(f"the compute agent ended during the {kind}")
            job.finish(None if was_published else error)

    def _remove_leftovers(self, keep: list[Workspace]) -> None:
        in_use = self._hypervisor.disk_paths()
        for workspace in self._directories.leftovers():
            if workspace in keep:
                continue
            if any(workspace.scratch in Path(path).parents for path in in_use):
                LOG.error("A guest writes to a file in %s: it stays", workspace.scratch)
                continue
            LOG.info("Removing what an ended job left in %s", workspace.scratch.name)
            workspace.remove()


def _is_too_late(entry: Entry) -> bool:
    """Tell whether a job that has not begun must not begin any more: it replaces a disk."""
    deadline = entry.request.deadline
    is_late = deadline is not None and deadline < clock.epoch_s()
    return is_late and entry.request.kind in DISK_KINDS
