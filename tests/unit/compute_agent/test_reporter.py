# SPDX-License-Identifier: Apache-2.0
"""An outcome reaches the API, however long that takes; progress is only ever the latest."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from common import context
from common.errors import BrokerUnavailable
from common.messages import SnapshotRequest
from common.reports import JobAccepted, JobProgress
from common.states import JobKind
from compute_agent.journal import Journal, JournalUnavailable
from compute_agent.reporter import Reporter
from tests.unit.compute_agent.conftest import outcome_of, wait_for

NewRequest = Callable[..., SnapshotRequest]


class Line:
    """The way to the API: keeps what was sent, and fails as often as it is told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.failures_left = 0

    def cast(self, _context: context.RequestContext, method: str, **arguments: Any) -> None:
        if self.failures_left:
            self.failures_left -= 1
            raise BrokerUnavailable("away")
        self.sent.append((method, arguments["report"]))

    call = cast

    def methods(self) -> list[str]:
        return [method for method, _ in self.sent]


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def reporter(line: Line, journal: Journal) -> Iterator[Reporter]:
    reporter = Reporter(line, journal, progress_interval_s=0.2)  # type: ignore[arg-type]
    reporter.start()
    yield reporter
    reporter.stop(time.monotonic() + 10)


def test_an_outcome_is_repeated_until_it_is_confirmed(
    reporter: Reporter, line: Line, journal: Journal, new_request: NewRequest
) -> None:
    request = new_request()
    journal.accept(request, {})
    line.failures_left = 1
    reporter.finished(context.new(), outcome_of(request))
    wait_for(lambda: line.methods() == ["job_finished"])
    wait_for(lambda: journal.unconfirmed() == [])


def test_an_outcome_that_was_not_delivered_is_delivered_by_the_next_start(
    line: Line, journal: Journal, new_request: NewRequest
) -> None:
    request = new_request()
    journal.accept(request, {})
    journal.finish(outcome_of(request))
    reporter = Reporter(line, journal, progress_interval_s=1)  # type: ignore[arg-type]
    reporter.start()
    wait_for(lambda: line.methods() == ["job_finished"])
    reporter.stop(time.monotonic() + 10)
    assert journal.unconfirmed() == []


def test_only_the_latest_progress_of_a_job_is_sent(
    reporter: Reporter, line: Line, new_request: NewRequest
) -> None:
    request = new_request()
    for done in range(500):
        progress = JobProgress(
            job_id=request.job_id, host="h", step="stream", bytes_done=done, bytes_total=500, at=1.0
        )
        reporter.progress(context.new(), progress)
    wait_for(lambda: any(report["bytes_done"] == 499 for _, report in line.sent))
    assert len(line.sent) <= 3


def test_acceptances_go_out_in_order_and_at_once(
    reporter: Reporter, line: Line, new_request: NewRequest
) -> None:
    requests = [new_request() for _ in range(5)]
    for request in requests:
        message = JobAccepted(
            job_id=request.job_id,
            kind=JobKind.SNAPSHOT,
            host="h",
            instance=request.instance,
            image_id=request.image_id,
            at=1.0,
        )
        reporter.accepted(context.new(), message)
    wait_for(lambda: len(line.sent) == 5)
    assert [report["job_id"] for _, report in line.sent] == [one.job_id for one in requests]


def test_what_no_line_should_raise_does_not_silence_the_agent(
    reporter: Reporter, line: Line, journal: Journal, new_request: NewRequest
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    line.call = broken  # type: ignore[method-assign]
    request = new_request()
    journal.accept(request, {})
    reporter.finished(context.new(), outcome_of(request))
    wait_for(lambda: bool(reporter._failures))
    line.call = line.cast  # type: ignore[method-assign]
    wait_for(lambda: journal.unconfirmed() == [])
    assert reporter.alive()


def test_an_outcome_that_the_api_cannot_take_does_not_hold_up_the_others(
    reporter: Reporter, line: Line, journal: Journal, new_request: NewRequest
) -> None:
    poison, good = new_request(), new_request()

    def call(_context: context.RequestContext, method: str, **arguments: Any) -> None:
        if arguments["report"]["job_id"] == poison.job_id:
            raise ZeroDivisionError
        line.cast(_context, method, **arguments)

    line.call = call  # type: ignore[method-assign]
    for request in (poison, good):
        journal.accept(request, {})
        reporter.finished(context.new(), outcome_of(request))
    wait_for(lambda: [one.job_id for one in journal.unconfirmed()] == [poison.job_id])


def test_an_outcome_that_the_journal_has_no_room_for_is_told_when_it_has(
    reporter: Reporter, line: Line, journal: Journal, new_request: NewRequest
) -> None:
    request = new_request()
    journal.accept(request, {})
    pages = _bound_pages(journal, 1)
    outcome = dataclasses.replace(outcome_of(request), reason="long " * 10_000)
    reporter.finished(context.new(), outcome)
    with pytest.raises(JournalUnavailable):
        journal.finish(outcome)
    assert line.methods() == [], (
        "told before it is written down, it would be undone by the next start"
    )
    _bound_pages(journal, pages)
    wait_for(lambda: line.methods() == ["job_finished"])
    wait_for(lambda: journal.unconfirmed() == [])


def _bound_pages(journal: Journal, count: int) -> int:
    """Let the journal's file be so large and no larger; return the bound before."""
    (before,) = journal._db.execute("PRAGMA max_page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count = {count}")
    return int(before)
