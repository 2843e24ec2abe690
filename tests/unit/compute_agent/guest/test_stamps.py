# SPDX-License-Identifier: Apache-2.0
"""QEMU's stamps prove (or do not prove) that the instant lay inside the pause."""

from __future__ import annotations

import json
import threading

from compute_agent.guest.stamps import Recorder, Stamp, pause_proof


def stamp(at: float, event: str, job_id: str | None = None) -> Stamp:
    return Stamp(at=at, event=event, job_id=job_id, job_status="created" if job_id else None)


def test_a_backup_that_began_between_stop_and_resume_is_proved() -> None:
    proof = pause_proof(
        [stamp(1.0, "STOP"), stamp(1.01, "JOB_STATUS_CHANGE", "backup-vda"), stamp(1.03, "RESUME")]
    )
    assert proof is not None
    assert proof.instant_inside is True
    assert round(proof.pause_ms) == 30


def test_a_backup_that_began_after_resume_is_not() -> None:
    proof = pause_proof(
        [stamp(1.0, "STOP"), stamp(1.03, "RESUME"), stamp(1.04, "JOB_STATUS_CHANGE", "backup-vda")]
    )
    assert proof is not None
    assert proof.instant_inside is False


def test_without_a_backup_nothing_is_proved_either_way() -> None:
    proof = pause_proof([stamp(1.0, "STOP"), stamp(1.03, "RESUME")])
    assert proof is not None
    assert proof.instant_inside is None


def test_other_jobs_of_the_guest_prove_nothing() -> None:
    other = stamp(9.0, "JOB_STATUS_CHANGE", "commit-vda")
    proof = pause_proof([stamp(1.0, "STOP"), stamp(1.03, "RESUME"), other])
    assert proof is not None
    assert proof.instant_inside is None


def test_a_pause_is_waited_for_and_older_ones_are_left_out() -> None:
    recorder = Recorder()
    recorder.record("d", "STOP", 1.0, None)
    recorder.record("d", "RESUME", 2.0, None)
    created = json.dumps({"id": "backup-vda", "status": "created"})

    def later() -> None:
        recorder.record("d", "STOP", 10.0, None)
        recorder.record("d", "JOB_STATUS_CHANGE", 10.1, created)
        recorder.record("d", "RESUME", 10.2, None)

    thread = threading.Thread(target=later)
    thread.start()
    proof = recorder.pause_since("d", 5.0, timeout_s=10)
    thread.join()
    assert proof is not None
    assert (proof.stopped_at, proof.instant_inside) == (10.0, True)


def test_a_pause_that_never_ends_is_not_waited_for_for_ever() -> None:
    recorder = Recorder()
    recorder.record("d", "STOP", 10.0, None)
    assert recorder.pause_since("d", 5.0, timeout_s=0.05) is None
