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

from api_service.agent_client import AgentClient
from api_service.store.ledger import Ledger
from common import context
from common.errors import StillframeError
from common.states import JobState

LOG = logging.getLogger(__name__)


class Dispatcher:
    """Casts jobs, in the order in which it is told of them. Its thread starts with the first."""

    def __init__(self, ledger: Ledger, agent_client: AgentClient) -> None:
        self._ledger = ledger
        self._agent_client = agent_client
        self._jobs: queue.Queue[str] = queue.Queue()
        self._waiting: set[str] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def poke(self, job_id: str) -> None:
        """Cast this job soon; returns at once."""
        with self._lock:
            if job_id in self._waiting:
                return  # the reaper asks each round while the broker is away
            self._waiting.add(job_id)
            self._jobs.put(job_id)
            if self._thread is None:
                # A daemon thread: what it has not cast, the ledger still holds.
                self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
                self._thread.start()

    def cast(self, job_id: str) -> bool:
        """Cast a job now, if it still waits for its agent; False if that failed."""
        job = self._ledger.find(job_id)
        if job is None or job.state is not JobState.PENDING or not job.castable:
            return True
        with context.bound(context.from_wire(job.context, job.instance_uuid)):
            try:
                self._agent_client.snapshot(job)
            except StillframeError as error:
                LOG.warning("Job %s could not be cast and is tried again: %s", job.id, error)
                return False
            self._ledger.was_cast(job.id)
            LOG.info("Cast job %s to the agent of host %s", job.id, job.host)
            return True

    def _run(self) -> None:
        while True:
            job_id = self._jobs.get()
            with self._lock:
                self._waiting.discard(job_id)
            try:
                self.cast(job_id)
            except Exception:
                LOG.exception("Job %s could not be cast and is tried again", job_id)
