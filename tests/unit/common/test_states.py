# SPDX-License-Identifier: Apache-2.0
"""A job moves as the table says and in no other way, in whatever order reports come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.states import (
    ENDED,
    EVENT_OF_OUTCOME,
    OPEN,
    TRANSITIONS,
    VM_STATE_OF_POWER_STATE,
    IllegalTransition,
    JobEvent,
    JobState,
    PowerState,
    advance,
)

RANK = {JobState.PENDING: 0, JobState.ACCEPTED: 1, JobState.RUNNING: 2}


@given(st.lists(st.sampled_from(JobEvent)))
def test_a_job_never_moves_backward_and_never_leaves_its_end(events: list[JobEvent]) -> None:
    state = JobState.PENDING
    for event in events:
        try:
            after = advance(state, event)
        except IllegalTransition:
            after = state
        if state in ENDED:
            assert after == state
        elif after in OPEN:
            assert RANK[after] >= RANK[state]
        state = after


def test_every_state_can_be_reached() -> None:
    assert set(TRANSITIONS.values()) | {JobState.PENDING} == set(JobState)


@pytest.mark.parametrize("state", sorted(OPEN))
@pytest.mark.parametrize("outcome", sorted(ENDED))
def test_an_outcome_ends_a_job_from_any_open_state(state: JobState, outcome: JobState) -> None:
    assert advance(state, EVENT_OF_OUTCOME[outcome]) == outcome


def test_every_power_state_means_a_vm_state() -> None:
    assert set(VM_STATE_OF_POWER_STATE) == set(PowerState)
