# SPDX-License-Identifier: Apache-2.0
"""What happens to an instance, its host and its agent while it is rebuilt costs it no disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from common import clock
from common.errors import (
    CaptureFailed,
    InstanceBusy,
    InstanceNotFound,
    JobCancelled,
    StillframeError,
)
from common.messages import InstanceRef, PowerRequest
from common.states import JobKind
from compute_agent import release
from compute_agent.guest.errors import HypervisorUnavailable
from compute_agent.jobs import Job, Jobs
from compute_agent.journal import Entry, Journal, JournalUnavailable
from compute_agent.power import Powers
from compute_agent.rebuild import Rebuilds
from compute_agent.rebuild_run import RebuildRefused
from compute_agent.recovery import Recovery
from compute_agent.swap import Swap
from tests.unit.compute_agent.conftest import RecordedReports
from tests.unit.compute_agent.rebuild.scene import (
    GUEST,
    NAMES,
    NEW,
    OFF,
    OLD,
    RUNNING,
    Killed,
    Scene,
    as_journalled,
    assert_as_it_was,
    die_in,
    fail,
    is_alone,
    new_job,
)
from tests.unit.compute_agent.stage import tools_of


def test_a_guest_that_somebody_starts_meanwhile_keeps_its_disk(
    rebuilds: Rebuilds, scene: Scene, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU would go on with the old file, whatever has its name."""
    real, looks = scene.is_active, iter([True, True, True, True])
    monkeypatch.setattr(scene, "is_active", lambda: next(looks, None) or real())
    with pytest.raises(InstanceBusy):
        rebuilds.run(job)
    monkeypatch.setattr(scene, "is_active", real)
    assert scene.disk.read_bytes() == OLD
    assert is_alone(scene)


def test_a_guest_that_somebody_starts_in_the_instant_of_the_swap_gets_its_old_disk_back(
    rebuilds: Rebuilds, scene: Scene, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the old file open, which would be removed below it."""
    real = Swap.swap

    def race(swap: Swap) -> None:
        scene.start()
        real(swap)

    monkeypatch.setattr(Swap, "swap", race)
    with pytest.raises(InstanceBusy):
        rebuilds.run(job)
    assert_as_it_was(scene)
    started = scene.done.index("start")
    assert "button" in scene.done[started:], "it is asked to go off before its power is cut"


def lay_overlay(scene: Scene) -> None:
    scene.disk = scene.disk.with_name("overlay")
    scene.disk.write_bytes(OLD)


MEANWHILE: dict[str, Callable[[Scene], None]] = {
    "another root disk": lay_overlay,
    "suspended to disk": lambda scene: setattr(scene, "saved_memory", True),
    "switched off": lambda scene: setattr(scene, "persistent", False),
}


def test_an_old_disk_that_cannot_be_removed_keeps_nobody_from_the_guest(
    rebuilds: Rebuilds,
    scene: Scene,
    job: Job,
    journal: Journal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs from a disk that was proven; what is left over is looked after by `Again`."""
    with monkeypatch.context() as patch:
        patch.setattr(Swap, "settle", refuse)
        rebuilds.run(job)
        job.finish(None)
        assert len(journal.unreleased()) == 1
        request = PowerRequest(instance=InstanceRef(uuid=GUEST), kind=JobKind.STOP)
        journal.accept(request, {})
        powers = Powers(tools_of(scene, journal, tmp_path), shutdown_timeout_s=1.0)
        powers.run(as_journalled(journal, request.job_id))
    assert scene.state is OFF
    assert scene.disk.read_bytes() == NEW


def refuse(_swap: Swap) -> None:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("words", MEANWHILE)
def test_an_instance_that_was_changed_while_the_image_was_fetched_is_not_switched_off(
    rebuilds: Rebuilds, scene: Scene, job: Job, words: str
) -> None:
    """A new disk below somebody's overlay, or other memory, would be neither state."""
    disk = scene.disk
    scene.at["build"] = lambda: MEANWHILE[words](scene)
    with pytest.raises(RebuildRefused, match=words):
        rebuilds.run(job)
    assert not {"button", "cut", "start"} & set(scene.done)
    assert disk.read_bytes() == OLD
    assert set(os.listdir(disk.parent)) == {disk.name, scene.disk.name}


@pytest.mark.parametrize("words", MEANWHILE)
def test_an_instance_that_was_changed_while_it_went_off_keeps_its_disk(
    rebuilds: Rebuilds, scene: Scene, job: Job, words: str
) -> None:
    disk = scene.disk
    scene.at["button"] = lambda: MEANWHILE[words](scene)
    with pytest.raises(RebuildRefused, match=words):
        rebuilds.run(job)
    assert (scene.state, scene.runs_from, disk.read_bytes()) == (RUNNING, OLD, OLD)
    assert set(os.listdir(disk.parent)) == {disk.name, scene.disk.name}


@pytest.mark.parametrize("at", ["start", "prove", "release"])
def test_one_that_cannot_go_on_because_libvirt_is_away_is_ended_later(
    rebuilds: Rebuilds,
    scene: Scene,
    job: Job,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    at: str,
) -> None:
    die_in(monkeypatch, at, done=False)
    with contextlib.suppress(Killed):
        rebuilds.run(job)
    monkeypatch.undo()
    scene.at["find"] = fail(HypervisorUnavailable("libvirt is away"))
    again, is_proven = as_journalled(journal, job.entry.job_id), at == "release"
    with contextlib.nullcontext() if is_proven else pytest.raises(HypervisorUnavailable):
        rebuilds.run(again)
    again.finish(None if is_proven else HypervisorUnavailable("libvirt is away"))
    scene.at.clear()
    release.give_back_all(tools_of(scene, journal, tmp_path))
    if is_proven:
        assert (is_alone(scene), scene.runs_from) == (True, NEW)
    else:
        assert_as_it_was(scene)
    assert journal.unreleased() == []


@pytest.mark.parametrize(("at", "stays"), [("prove", OLD), ("release", NEW)])
def test_one_whose_instance_is_gone_when_it_would_go_on_leaves_one_disk(
    rebuilds: Rebuilds,
    scene: Scene,
    job: Job,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    stays: bytes,
) -> None:
    die_in(monkeypatch, at, done=False)
    with contextlib.suppress(Killed):
        rebuilds.run(job)
    monkeypatch.undo()
    scene.at["find"] = fail(InstanceNotFound("it was undefined"))
    with pytest.raises(InstanceNotFound):
        rebuilds.run(as_journalled(journal, job.entry.job_id))
    assert (scene.disk.read_bytes(), is_alone(scene)) == (stays, True)


def test_a_journal_that_is_full_does_not_keep_the_old_disk_from_its_place(
    rebuilds: Rebuilds,
    scene: Scene,
    job: Job,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = journal.begin_step

    def full_from(job_id: str, step: str, facts: Any) -> None:
        if step not in NAMES[: NAMES.index("start")]:
            raise JournalUnavailable("its disk is full")
        real(job_id, step, facts)

    monkeypatch.setattr(journal, "begin_step", full_from)
    with pytest.raises(JournalUnavailable):
        rebuilds.run(job)
    assert_as_it_was(scene)


def test_a_guest_whose_old_disk_is_still_to_be_put_back_is_not_started_from_the_new_one(
    rebuilds: Rebuilds, scene: Scene, job: Job, journal: Journal, tmp_path: Path
) -> None:
    scene.at = {"write": fail(StillframeError("no")), "unwrite": fail(StillframeError("away"))}
    with pytest.raises(StillframeError):
        rebuilds.run(job)
    job.finish(CaptureFailed("no"))
    assert scene.disk.read_bytes() == NEW
    powers = Powers(tools_of(scene, journal, tmp_path), shutdown_timeout_s=1.0)

    def start() -> None:
        request = PowerRequest(instance=InstanceRef(uuid=GUEST), kind=JobKind.START)
        journal.accept(request, {})
        powers.run(as_journalled(journal, request.job_id))

    with pytest.raises(StillframeError, match="away"):
        start()
    assert scene.state is OFF
    scene.at.clear()
    start()
    assert_as_it_was(scene)
    assert journal.unreleased() == []


def test_one_that_is_cancelled_before_it_goes_on_is_undone(
    rebuilds: Rebuilds,
    scene: Scene,
    job: Job,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    die_in(monkeypatch, "prove", done=False)
    with contextlib.suppress(Killed):
        rebuilds.run(job)
    monkeypatch.undo()
    again = as_journalled(journal, job.entry.job_id)
    again.stop(JobCancelled("enough"))
    with pytest.raises(JobCancelled):
        rebuilds.run(again)
    assert_as_it_was(scene)


def test_what_cannot_be_put_back_now_is_put_back_later(
    rebuilds: Rebuilds, scene: Scene, job: Job, journal: Journal, tmp_path: Path
) -> None:
    scene.at["start"] = fail(StillframeError("libvirt is away"))
    with pytest.raises(StillframeError):
        rebuilds.run(job)
    job.finish(CaptureFailed("no"))
    assert [entry.job_id for entry in journal.unreleased()] == [job.entry.job_id]
    scene.at.clear()
    release.give_back_all(tools_of(scene, journal, tmp_path))
    assert_as_it_was(scene)
    assert journal.unreleased() == []


def test_an_instance_that_goes_meanwhile_leaves_one_disk_and_nothing_beside_it(
    rebuilds: Rebuilds, scene: Scene, job: Job
) -> None:
    gone = fail(InstanceNotFound("the instance no longer exists on its host"))
    scene.at = {"start": gone, "unwrite": gone}
    with pytest.raises(InstanceNotFound):
        rebuilds.run(job)
    assert (scene.disk.read_bytes(), is_alone(scene)) == (OLD, True)


def test_what_cannot_be_given_up_now_does_not_keep_the_agent_from_starting(
    rebuilds: Rebuilds,
    scene: Scene,
    job: Job,
    journal: Journal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene.at = {"write": fail(StillframeError("no")), "unwrite": fail(StillframeError("away"))}
    with pytest.raises(StillframeError):
        rebuilds.run(job)
    job.finish(CaptureFailed("no"))
    scene.at = {"find": fail(InstanceNotFound("it was undefined"))}
    with monkeypatch.context() as patch:
        patch.setattr(Swap, "put_back", lambda _: fail(OSError("read-only"))())
        release.give_back_all(tools_of(scene, journal, tmp_path))
    assert len(journal.unreleased()) == 1
    release.give_back_all(tools_of(scene, journal, tmp_path))
    assert (scene.disk.read_bytes(), is_alone(scene)) == (OLD, True)
    assert journal.unreleased() == []


def test_a_rebuild_that_recovery_stumbles_over_is_come_back_to(
    rebuilds: Rebuilds,
    scene: Scene,
    job: Job,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    die_in(monkeypatch, "swap", done=True)
    with contextlib.suppress(Killed):
        rebuilds.run(job)
    monkeypatch.undo()
    tools = tools_of(scene, journal, tmp_path)
    undo = {JobKind.REBUILD: lambda _: fail(KeyError("of another version"))()}
    jobs, reports = cast(Jobs, None), RecordedReports(journal)
    Recovery(undo, host="h", tools=tools, jobs=jobs, reports=reports).start()
    release.give_back_all(tools)
    assert_as_it_was(scene)


@pytest.mark.parametrize("is_late", [True, False])
def test_a_rebuild_that_had_not_begun_begins_after_an_outage_only_in_time(
    rebuilds: Rebuilds, scene: Scene, journal: Journal, tmp_path: Path, is_late: bool
) -> None:
    """After an hour its user has been told that it failed, and may count on the old disk."""
    new_job(journal, deadline=clock.epoch_s() + (-1 if is_late else 60))
    submitted: list[Entry] = []
    jobs = cast(Jobs, SimpleNamespace(submit=submitted.append))
    Recovery(
        {JobKind.REBUILD: rebuilds.recover},
        host="h",
        tools=tools_of(scene, journal, tmp_path),
        jobs=jobs,
        reports=RecordedReports(journal),
    ).start()
    assert (len(submitted), len(journal.open_entries())) == ((0, 0) if is_late else (1, 1))
    assert journal.unreleased() == []
    assert_as_it_was(scene)
