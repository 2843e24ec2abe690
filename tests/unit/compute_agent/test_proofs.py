# SPDX-License-Identifier: Apache-2.0
"""A guest is seen to run by what the option says, and one that goes off is not waited for."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from common.errors import JobCancelled
from common.states import PowerState
from compute_agent import proofs
from compute_agent.guest.domain import Guest
from compute_agent.jobs import Job
from compute_agent.proofs import ProofSettings, RebuildUnproven, see

RUNNING = ProofSettings(proof="running", running_s=0.05, timeout_s=0.05, port=1)


class Played:
    """A guest that does what a test says."""

    def __init__(self) -> None:
        self.looks = 0
        #: What happens at each look, by its number.
        self.at: Callable[[int], None] = lambda _: None
        self.state = PowerState.RUNNING
        self.run = "1"
        self.agent = False

    def power_state(self) -> PowerState:
        self.looks += 1
        self.at(self.looks)
        return self.state

    def run_id(self) -> str:
        return self.run

    def has_agent(self) -> bool:
        return self.agent

    def agent_answers(self) -> bool:
        return self.agent

    def addresses(self) -> tuple[str, ...]:
        return ("127.0.0.1",)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "_LOOK_S", 0.005)


@pytest.fixture
def guest() -> Played:
    return Played()


@pytest.fixture
def port() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def look(guest: Played, job: Job, settings: ProofSettings) -> None:
    see(cast(Guest, guest), job, settings)


def test_one_that_has_run_for_so_long_is_seen(guest: Played, job: Job) -> None:
    look(guest, job, RUNNING)
    assert guest.looks > 2


@pytest.mark.parametrize(
    "what", [{"state": PowerState.SHUTDOWN}, {"state": PowerState.CRASHED}, {"run": "2"}]
)
def test_one_that_goes_off_or_was_started_anew_is_not(
    guest: Played, job: Job, what: dict[str, Any]
) -> None:
    def go(number: int) -> None:
        if number == 3:
            vars(guest).update(what)

    guest.at = go
    with pytest.raises(RebuildUnproven, match="go on running"):
        look(guest, job, dataclasses.replace(RUNNING, running_s=60))


def test_an_agent_that_comes_to_answer_is_proof(guest: Played, job: Job) -> None:
    guest.at = lambda number: setattr(guest, "agent", number == 4)
    look(guest, job, ProofSettings(proof="agent", running_s=0, timeout_s=60, port=1))
    assert guest.looks == 4


def test_an_agent_that_does_not_answer_in_time_is_none(guest: Played, job: Job) -> None:
    with pytest.raises(RebuildUnproven, match="its guest agent did not answer"):
        look(guest, job, dataclasses.replace(RUNNING, proof="agent"))


def test_an_open_port_is_proof_and_a_closed_one_is_none(guest: Played, job: Job, port: int) -> None:
    wanted = dataclasses.replace(RUNNING, proof="port", port=port, timeout_s=60)
    look(guest, job, wanted)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        number = closed.getsockname()[1]
    with pytest.raises(RebuildUnproven, match="its port was not open"):
        look(guest, job, dataclasses.replace(wanted, port=number, timeout_s=0.05))


def test_a_job_that_is_to_end_waits_no_longer(guest: Played, job: Job) -> None:
    guest.at = lambda number: job.stop(JobCancelled("enough")) if number == 2 else None
    with pytest.raises(JobCancelled):
        look(guest, job, dataclasses.replace(RUNNING, running_s=60))
