# SPDX-License-Identifier: Apache-2.0
"""The agent's own record of accepted work, fsynced before the work begins.

RPC messages are acknowledged before they are handled, so this file, not the
queue, makes a job survive the agent. An entry holds the request, the context
it came with, the step that has begun (with the facts that undoing it needs)
and, at the end, the outcome until the API has confirmed it. SQLite commits
survive a torn write; nothing above this module sees SQL.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common import clock
from common.errors import JobFailed, MalformedMessage
from common.messages import JobRequest, request_from_wire
from common.reports import JobOutcome
from common.states import JobKind

LOG = logging.getLogger(__name__)

#: Ended jobs are remembered this long, so that a late duplicate is not run again.
_REMEMBER_S = 7 * 24 * 3600

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    job_id      TEXT PRIMARY KEY,
    request     TEXT NOT NULL,
    context     TEXT NOT NULL,
    accepted_at REAL NOT NULL,
    step        TEXT,
    facts       TEXT NOT NULL DEFAULT '{}',
    outcome     TEXT,
    ended_at    REAL,
    confirmed   INTEGER NOT NULL DEFAULT 0,
    unreleased  INTEGER NOT NULL DEFAULT 0,
    kind        TEXT NOT NULL DEFAULT 'snapshot'
)
"""
#: A journal of an earlier release holds snapshots alone.
_ADD_KIND = "ALTER TABLE entries ADD COLUMN kind TEXT NOT NULL DEFAULT 'snapshot'"

_SELECT = "SELECT job_id, kind, request, context, accepted_at, step, facts, outcome FROM entries"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One journalled job; `step` is the last one that began, `facts` what undoing needs."""

    job_id: str
    request: JobRequest
    context: dict[str, Any]
    accepted_at: float
    step: str | None
    facts: dict[str, Any]
    outcome: JobOutcome | None


class JournalUnavailable(JobFailed):
    """What must be written down before it is done cannot be: the disk is full, or broken."""

    code = "journal_unavailable"


class Journal:
    """Thread-safe; each method is one durable transaction, or raises JournalUnavailable."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        with _told():
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(_SCHEMA)
            columns = self._db.execute("PRAGMA table_info(entries)")
            if "kind" not in {name for _, name, *_ in columns}:
                self._db.execute(_ADD_KIND)
        self._forget_old()

    def accept(self, request: JobRequest, context: Mapping[str, Any]) -> bool:
        """Record a job before anything is done for it; False if it is known already."""
        cursor = self._execute(
            "INSERT OR IGNORE INTO entries (job_id, kind, request, context, accepted_at)"
            " VALUES (?, ?, ?, ?, ?)",
            request.job_id,
            request.kind,
            json.dumps(request.to_wire()),
            json.dumps(dict(context)),
            clock.epoch_s(),
        )
        return cursor.rowcount == 1

    def begin_step(self, job_id: str, step: str, facts: Mapping[str, Any]) -> None:
        """Record that `step` begins now, with what undoing it after a crash needs."""
        self._execute(
            "UPDATE entries SET step = ?, facts = ? WHERE job_id = ? AND outcome IS NULL",
            step,
            json.dumps(dict(facts)),
            job_id,
        )

    def note(self, job_id: str, **facts: Any) -> None:
        """Record facts that are new, or have changed since the step began; none may be None."""
        # At once: another thread may begin a step meanwhile.
        self._execute(
            "UPDATE entries SET facts = json_patch(facts, ?) WHERE job_id = ?",
            json.dumps(facts),
            job_id,
        )

    def open_job_ids(self) -> tuple[str, ...]:
        """Return the jobs that have no outcome yet, or one that the API does not know yet."""
        rows = self._execute("SELECT job_id FROM entries WHERE outcome IS NULL OR confirmed = 0")
        return tuple(job_id for (job_id,) in rows.fetchall())

    def finish(self, outcome: JobOutcome) -> None:
        """Record how the job ended; it stays until `confirm`."""
        self._execute(
            "UPDATE entries SET outcome = ?, ended_at = ? WHERE job_id = ? AND outcome IS NULL",
            json.dumps(outcome.to_wire()),
            clock.epoch_s(),
            outcome.job_id,
        )

    def confirm(self, job_id: str) -> None:
        """Record that the API has the outcome."""
        self._execute("UPDATE entries SET confirmed = 1 WHERE job_id = ?", job_id)

    def mark_unreleased(self, job_id: str) -> None:
        """Record that the job ends although its capture could not be ended."""
        self._execute("UPDATE entries SET unreleased = 1 WHERE job_id = ?", job_id)

    def mark_released(self, job_id: str) -> None:
        """Record that nothing of the job is left on its guest."""
        self._execute("UPDATE entries SET unreleased = 0 WHERE job_id = ?", job_id)

    def unreleased(self) -> list[Entry]:
        """Return the ended entries whose capture could not be ended, oldest first."""
        return self._select(
            _SELECT + " WHERE unreleased = 1 AND outcome IS NOT NULL ORDER BY accepted_at"
        )

    def find(self, job_id: str) -> Entry | None:
        """Return one entry, ended or not."""
        return next(iter(self._select(_SELECT + " WHERE job_id = ?", job_id)), None)

    def open_entries(self) -> list[Entry]:
        """Return the entries without an outcome, oldest first."""
        return self._select(_SELECT + " WHERE outcome IS NULL ORDER BY accepted_at")

    def unconfirmed(self) -> list[Entry]:
        """Return the ended entries that the API has not confirmed, oldest first."""
        return self._select(
            _SELECT + " WHERE outcome IS NOT NULL AND confirmed = 0 ORDER BY accepted_at"
        )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _forget_old(self) -> None:
        self._execute(
            "DELETE FROM entries WHERE confirmed = 1 AND unreleased = 0 AND ended_at < ?",
            clock.epoch_s() - _REMEMBER_S,
        )

    def _execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        with self._lock, _told():
            return self._db.execute(sql, values)

    def _select(self, query: str, *values: Any) -> list[Entry]:
        with self._lock, _told():
            rows = self._db.execute(query, values).fetchall()
        return [entry for row in rows if (entry := _readable(row)) is not None]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        LOG.error("The journal cannot be used: %s; is its disk full?", error)
        raise JournalUnavailable(
            "the compute agent cannot keep its journal; the operator of its host must make room"
        ) from error


def _readable(row: tuple[Any, ...]) -> Entry | None:
    """One row that another version wrote otherwise must not keep the agent from its work."""
    try:
        return _entry(row)
    except (MalformedMessage, TypeError, ValueError):
        LOG.exception("Job %s in the journal cannot be read; it is left alone", row[0])
        return None


def _entry(row: tuple[Any, ...]) -> Entry:
    job_id, kind, request, context, accepted_at, step, facts, outcome = row
    return Entry(
        job_id=job_id,
        request=request_from_wire(JobKind(kind), json.loads(request)),
        context=json.loads(context),
        accepted_at=accepted_at,
        step=step,
        facts=json.loads(facts),
        outcome=JobOutcome.from_wire(json.loads(outcome)) if outcome else None,
    )
