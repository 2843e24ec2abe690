# SPDX-License-Identifier: Apache-2.0
"""The only caster: sends jobs of the ledger to their agents.

A request pokes it and returns; one thread of the process casts, so no request
ever waits for the broker. What could not be cast stays `pending` in the ledger
and is swept up by the reaper.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from api_service.agent_client import AgentClient
from api_service.store.ledger import Ledger
from api_service.store.records import Job
from common import context
from common.errors import StillframeError
from common.states import ENDED, JobState

LOG = logging.getLogger(__name__)


class Dispatcher:
    """Casts jobs, in the order in which it is told of them. Its thread starts with the first."""

    def __init__(self, ledger: Ledger, agent_client: AgentClient) -> None:
        self._ledger = ledger
        self._agent_client = agent_client
        self._jobs: queue.Queue[tuple[Callable[[str], bool], str]] = queue.Queue()
        self._waiting: set[tuple[Callable[[str], bool], str]] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def poke(self, job_id: str) -> None:
        """Cast this job, or that it was cancelled, soon; returns at once."""
        self._do_soon(self.cast, job_id)

    def poke_limit(self, job_id: str) -> None:
        """Cast a running job's own limit soon; returns at once."""
        self._do_soon(self.cast_limit, job_id)

    def cast(self, job_id: str) -> bool:
        """Cast what the agent does not know yet of a job; False if that failed."""
        job = self._ledger.find(job_id)
        if job is None:
            return True
        if job.cancel_asked_at is not None:
            # Also where the job has ended: it may have been cast before it was accepted.
            return self._try(job, self._agent_client.cancel)
        if job.state is not JobState.PENDING or not job.castable:
            return True
        done = self._try(job, self._agent_client.start)
        if done:
            self._ledger.was_cast(job.id)
            with _bound(job):
                LOG.info("Cast job %s to the agent of host %s", job.id, job.host)
        return done

    def cast_limit(self, job_id: str) -> bool:
        """Cast the limit that a job got while it ran; False if that failed."""
        job = self._ledger.find(job_id)
        if job is None or job.state in ENDED or not job.limit_due:
            return True
        done = self._try(job, self._agent_client.adjust)
        if done:
            self._ledger.was_limited(job.id, job.options.get("bandwidth_limit") or 0)
        return done

    def _try(self, job: Job, cast: Callable[[Job], None]) -> bool:
        with _bound(job):
            try:
                cast(job)
            except StillframeError as error:
                LOG.warning("Job %s: a cast failed and is tried again: %s", job.id, error)
                return False
            return True

    def _do_soon(self, work: Callable[[str], bool], job_id: str) -> None:
        with self._lock:
            if (work, job_id) in self._waiting:
                return  # the reaper asks each round while the broker is away
            self._waiting.add((work, job_id))
            self._jobs.put((work, job_id))
            if self._thread is None:
                # A daemon thread: what it has not cast, the ledger still holds.
                self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            work, job_id = self._jobs.get()
            with self._lock:
                self._waiting.discard((work, job_id))
            try:
                work(job_id)
            except Exception:
                LOG.exception("Job %s could not be cast and is tried again", job_id)


def _bound(job: Job) -> AbstractContextManager[context.RequestContext]:
    return context.bound(context.from_wire(job.context, job.instance_uuid))
