# SPDX-License-Identifier: Apache-2.0
"""What is in the journal is there after a crash, and nothing is run twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.messages import SnapshotRequest
from compute_agent.journal import Journal, JournalUnavailable
from tests.unit.compute_agent.conftest import outcome_of

NewRequest = Callable[..., SnapshotRequest]

ACCEPT_AND_DIE = """
import os, signal, sys, json
from pathlib import Path
from common.messages import SnapshotRequest
from compute_agent.journal import Journal, JournalUnavailable
request = SnapshotRequest.from_wire(json.loads(sys.argv[2]))
journal = Journal(Path(sys.argv[1]))
assert journal.accept(request, {"request_id": "req-1"})
journal.begin_step(request.job_id, "pause", {"pauses": True})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_step_that_began_is_found_after_kill_9(tmp_path: Path, new_request: NewRequest) -> None:
    import json

    request = new_request()
    path = tmp_path / "journal.sqlite"
    command = [sys.executable, "-c", ACCEPT_AND_DIE, str(path), json.dumps(request.to_wire())]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    died = subprocess.run(command, timeout=60, check=False, env=environment)
    assert died.returncode == -signal.SIGKILL
    journal = Journal(path)
    (entry,) = journal.open_entries()
    assert (entry.request, entry.step, entry.facts) == (request, "pause", {"pauses": True})
    assert entry.context == {"request_id": "req-1"}
    journal.close()


def test_a_job_is_accepted_once(journal: Journal, new_request: NewRequest) -> None:
    request = new_request()
    assert journal.accept(request, {})
    assert not journal.accept(request, {})
    journal.finish(outcome_of(request))
    assert not journal.accept(request, {}), "also not when it has ended"


def test_an_outcome_stays_until_it_is_confirmed(journal: Journal, new_request: NewRequest) -> None:
    request = new_request()
    journal.accept(request, {})
    assert journal.unconfirmed() == []
    journal.finish(outcome_of(request))
    (entry,) = journal.unconfirmed()
    assert entry.outcome == outcome_of(request)
    assert journal.open_entries() == []
    journal.confirm(request.job_id)
    assert journal.unconfirmed() == []


def test_a_first_outcome_is_final(journal: Journal, new_request: NewRequest) -> None:
    request = new_request()
    journal.accept(request, {})
    journal.finish(outcome_of(request))
    journal.begin_step(request.job_id, "late", {})
    entry = journal.find(request.job_id)
    assert entry is not None
    assert entry.step is None


def test_a_row_that_cannot_be_read_does_not_hide_the_others(
    journal: Journal, new_request: NewRequest
) -> None:
    """Another version may have written it."""
    strange, plain = new_request(), new_request()
    for request in (strange, plain):
        journal.accept(request, {})
    journal._execute(
        "UPDATE entries SET request = '{\"image_id\": 3}' WHERE job_id = ?", strange.job_id
    )
    assert [entry.job_id for entry in journal.open_entries()] == [plain.job_id]


def test_a_job_is_open_until_the_api_has_its_outcome(
    journal: Journal, new_request: NewRequest
) -> None:
    request = new_request()
    journal.accept(request, {})
    assert journal.open_job_ids() == (request.job_id,)
    journal.finish(outcome_of(request))
    assert journal.open_job_ids() == (request.job_id,)
    journal.confirm(request.job_id)
    assert journal.open_job_ids() == ()


def test_facts_may_change_within_a_step(journal: Journal, new_request: NewRequest) -> None:
    request = new_request()
    journal.accept(request, {})
    journal.begin_step(request.job_id, "verify", {"method": "backup", "images": ["a"]})
    journal.note(request.job_id, images=["b"])
    (entry,) = journal.open_entries()
    assert (entry.step, entry.facts) == ("verify", {"method": "backup", "images": ["b"]})


def test_a_journal_that_cannot_be_opened_is_told_as_such(tmp_path: Path) -> None:
    """The agent says so and does not start, rather than show a traceback."""
    path = tmp_path / "journal.sqlite"
    path.mkdir()
    with pytest.raises(JournalUnavailable):
        Journal(path)
