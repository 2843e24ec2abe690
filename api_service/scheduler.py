# SPDX-License-Identifier: Apache-2.0
"""Runs the backup policies: plans what is due, and looks after each run until it has ended.

One process of the cloud does it at a time (a lease). Should two of them believe
that it is theirs (a round that waits for Glance outlasts a lease), each run is
still planned and asked for once: the database moves a policy, and a run, only
from where it was seen.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable

from api_service.backup_policies import BackupPolicies, new_run
from api_service.policy_runner import PolicyRunner, Round
from api_service.schedule import Schedule
from api_service.store.engine import Database
from api_service.store.lease import Lease
from api_service.store.policy_records import Missed, Policy, Run, RunState
from common import clock

LOG = logging.getLogger(__name__)

_LEASE_ROUNDS = 3
_FORGET_EVERY = dt.timedelta(hours=1)
#: A run of a policy that will never be due again waits so long.
_LAST_WAITS = dt.timedelta(days=1)


class Scheduler:
    """A service: one round every `interval_s`."""

    name = "scheduler"

    def __init__(
        self,
        *,
        database: Database,
        book: BackupPolicies,
        runner: PolicyRunner,
        interval_s: float,
        missed_after_s: float,
        history_days: int,
    ) -> None:
        holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._lease = Lease(database, "scheduler", holder, interval_s * _LEASE_ROUNDS)
        self._book, self._policies, self._runs = book, book.policies, book.runs
        self._runner = runner
        self._interval_s = interval_s
        self._missed_after = dt.timedelta(seconds=missed_after_s)
        self._history = dt.timedelta(days=history_days)
        self._forgot_at = clock.now() - _FORGET_EVERY
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin with a round at once: something may have been due meanwhile."""
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """End after the run at hand."""
        self._stopping.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def alive(self) -> bool:
        """Tell whether the thread runs (for the watchdog)."""
        return self._thread.is_alive()

    def round(self) -> None:
        """Look once at every policy that is due and every run that has not ended."""
        for policy in self._policies.due(clock.now()):
            _guard(f"Planning policy {policy.id}", functools.partial(self._plan, policy))
        round_ = Round(at_work=self._runs.at_work())
        for run in self._runs.open(clock.now()):
            if self._stopping.is_set():
                return
            look = functools.partial(self._runner.look_at, run, round_)
            _guard(f"Run {run.id} of policy {run.policy_id}", look)
        self._forget()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._lease.take():
                    self.round()
            except Exception:
                # The database may be away; the next round tries again.
                LOG.exception("A round of the scheduler failed")
            self._stopping.wait(self._interval_s)

    def _plan(self, policy: Policy) -> None:
        """Enter the runs of a policy that is due: of several times that were missed, the last."""
        now, times = clock.now(), Schedule(cron=policy.cron, time_zone=policy.time_zone)
        first = policy.next_due_at or now
        due_at, next_due_at = times.newest(first, now) or first, times.next_after(now)
        is_missed = now - due_at > self._missed_after
        runs = [
            new_run(
                policy,
                instance,
                due_at=due_at,
                give_up_at=next_due_at or now + _LAST_WAITS,
                late_since=now if is_missed else None,
            )
            for instance in self._book.instances_of(policy)
        ]
        if is_missed and policy.missed is Missed.SKIP:
            runs = [_missed(run, now) for run in runs]
        if self._policies.plan(policy, next_due_at, runs):
            what = (policy.id, policy.name, due_at, len(runs), next_due_at)
            LOG.info("Policy %s (%s) is due since %s: %d instances; next at %s", *what)

    def _forget(self) -> None:
        if clock.now() - self._forgot_at < _FORGET_EVERY:
            return
        self._forgot_at = clock.now()
        gone = self._runs.forget(clock.now() - self._history)
        if gone:
            LOG.info("Forgot %d runs of policies that ended long ago", gone)


def _guard(what: str, work: Callable[[], None]) -> None:
    """Do one thing; a defect met there must not keep the others waiting."""
    try:
        work()
    except Exception:
        LOG.exception("%s failed; it is tried again", what)


def _missed(run: Run, now: dt.datetime) -> Run:
    return dataclasses.replace(
        run,
        state=RunState.SKIPPED,
        reason="its time had passed before any API could see to it",
        reason_code="missed",
        finished_at=now,
    )
