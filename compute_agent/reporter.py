# SPDX-License-Identifier: Apache-2.0
"""Tells the API how jobs go; one thread, so that a dead broker holds up no job.

Acceptances and progress are casts: progress is coalesced to the latest of each
job. An outcome is a call, repeated until the API has answered that it is
recorded; the journal keeps it meanwhile, also over a restart. One that the
journal has no room for waits here, and is told only when it is written down.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any

from common import context
from common.errors import StillframeError
from common.reports import JobAccepted, JobOutcome, JobProgress
from common.rpc import Client
from compute_agent.journal import Entry, Journal, JournalUnavailable

LOG = logging.getLogger(__name__)

_BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)


class Reporter:
    """The agent's way to the API."""

    name = "reporter"

    def __init__(self, client: Client, journal: Journal, *, progress_interval_s: float) -> None:
        self._client = client
        self._journal = journal
        self.progress_interval_s = progress_interval_s
        self._changed = threading.Condition()
        self._answers: deque[tuple[context.RequestContext, str, dict[str, Any]]] = deque()
        self._progress: dict[str, tuple[context.RequestContext, JobProgress]] = {}
        #: Outcomes that the journal had no room for yet.
        self._unrecorded: list[JobOutcome] = []
        self._outcome_due = False
        self._failures = 0
        self._last_progress = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        """Deliver what the journal still holds, and then whatever comes."""
        self._outcome_due = True
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Try to deliver what waits; the journal keeps what could not be."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        for entry in self._journal.unconfirmed():
            LOG.warning("The outcome of job %s is reported at the next start", entry.job_id)

    def alive(self) -> bool:
        """Tell whether the thread runs (for the watchdog)."""
        return self._thread.is_alive()

    def accepted(self, request_context: context.RequestContext, message: JobAccepted) -> None:
        """Tell that a job is in the journal."""
        self._answer(request_context, "job_accepted", message.to_wire())

    def refused(self, request_context: context.RequestContext, outcome: JobOutcome) -> None:
        """Tell that a request does not become a job; told again when it is cast again."""
        self._answer(request_context, "job_finished", outcome.to_wire())

    def progress(self, request_context: context.RequestContext, progress: JobProgress) -> None:
        """Tell where a job stands; only the latest is sent."""
        with self._changed:
            self._progress[progress.job_id] = (request_context, progress)
            self._changed.notify()

    def finished(self, request_context: context.RequestContext, outcome: JobOutcome) -> None:
        """Journal an outcome and tell it until the API has confirmed it."""
        with self._changed:
            self._unrecorded.append(outcome)
        self._record_outcomes()
        with self._changed:
            self._progress.pop(outcome.job_id, None)
            self._outcome_due = True
            self._changed.notify()

    def _answer(
        self, request_context: context.RequestContext, method: str, report: dict[str, Any]
    ) -> None:
        with self._changed:
            self._answers.append((request_context, method, report))
            self._changed.notify()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            with self._changed:
                self._changed.wait_for(self._something_to_send, self._patience_s())
                stopping = self._stopping
            try:
                self._send_what_is_due()
            except Exception:
                # The thread is the only way to the API: it must outlive any message.
                LOG.exception("A report could not be sent")

    def _send_what_is_due(self) -> None:
        self._send_answers()
        if time.monotonic() - self._last_progress >= self.progress_interval_s:
            self._last_progress = time.monotonic()
            self._send_progress()
        if self._outcome_due:
            self._deliver_outcomes()

    def _something_to_send(self) -> bool:
        fresh_outcome = self._outcome_due and not self._failures
        return bool(self._stopping or self._answers or fresh_outcome)

    def _patience_s(self) -> float | None:
        """Return how long the thread may sleep; None: until something comes."""
        if self._failures:
            return _BACKOFF_S[min(self._failures, len(_BACKOFF_S)) - 1]
        # Progress that waits is sent when its interval is over; looking once an
        # interval costs nothing.
        left_s = self.progress_interval_s - (time.monotonic() - self._last_progress)
        return max(0.05, left_s) if self._progress else self.progress_interval_s

    def _send_answers(self) -> None:
        while self._answers:
            self._cast(*self._answers.popleft())

    def _send_progress(self) -> None:
        with self._changed:
            latest, self._progress = self._progress, {}
        for request_context, progress in latest.values():
            self._cast(request_context, "job_progress", progress.to_wire())

    def _deliver_outcomes(self) -> None:
        # Lowered before looking: an outcome that comes meanwhile raises it again.
        self._outcome_due = False
        delivered = False
        try:
            recorded = self._record_outcomes()
            # Each for itself: one that the API cannot take must not keep the others waiting.
            tellings = [self._deliver(entry) for entry in self._journal.unconfirmed()]
            delivered = recorded and all(tellings)
        finally:
            self._failures = 0 if delivered else self._failures + 1
            self._outcome_due = self._outcome_due or not delivered

    def _record_outcomes(self) -> bool:
        """Write down the outcomes that are not; return whether all of them are."""
        with self._changed:
            waiting = list(self._unrecorded)
        for outcome in waiting:
            try:
                self._journal.finish(outcome)
            except JournalUnavailable:
                LOG.error("The outcome of job %s cannot be recorded yet", outcome.job_id)
                return False
            with self._changed:
                self._unrecorded = [one for one in self._unrecorded if one is not outcome]
        return True

    def _deliver(self, entry: Entry) -> bool:
        if entry.outcome is None:
            return True
        request_context = context.from_wire(entry.context, entry.request.instance.uuid)
        try:
            self._client.call(request_context, "job_finished", report=entry.outcome.to_wire())
        except StillframeError as error:
            with context.bound(request_context):
                LOG.warning("The outcome of job %s waits for the API: %s", entry.job_id, error)
            return False
        except Exception:
            with context.bound(request_context):
                LOG.exception("The API cannot take the outcome of job %s", entry.job_id)
            return False
        self._journal.confirm(entry.job_id)
        return True

    def _cast(
        self, request_context: context.RequestContext, method: str, report: dict[str, Any]
    ) -> None:
        # Lost ones are made good by what follows: the API casts again what it
        # has not seen accepted, and the next progress says more than this one.
        try:
            self._client.cast(request_context, method, report=report)
        except StillframeError as error:
            LOG.warning("%s was not delivered: %s", method, error)
