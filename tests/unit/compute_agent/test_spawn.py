# SPDX-License-Identifier: Apache-2.0
"""A new instance, step by step: whatever fails or dies, it runs or there is nothing of it."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import JobCancelled
from common.messages import CreateRequest, DeleteRequest, InstanceRef
from common.states import PowerState
from compute_agent import release, spawn
from compute_agent.guest import metadata
from compute_agent.guest.errors import HypervisorError, HypervisorUnavailable, NetworkNotFound
from compute_agent.jobs import Job
from compute_agent.journal import JournalUnavailable
from compute_agent.places import Place, PlaceTaken, PlaceUnusable
from tests.unit.compute_agent.conftest import RecordedReports, wait_for
from tests.unit.compute_agent.spawn_scene import FLAVOR, IMAGE, UUID, Killed, PlayedGuest, Scene


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(spawn, "_UNDO_WAIT_S", 0)
    scene = Scene(tmp_path)
    yield scene
    scene.journal.close()


def wish(**changes: Any) -> CreateRequest:
    values: dict[str, Any] = {
        "instance": InstanceRef(uuid=UUID, project_id="p", user_id="u", name="a <new> one"),
        "image_id": IMAGE,
        "flavor": FLAVOR,
        "networks": ("lan",),
        "image_properties": {"os_type": "linux"},
    }
    return CreateRequest(**(values | changes))


def test_qemu_gets_through_to_its_files_whatever_the_umask_is(scene: Scene) -> None:
    before = os.umask(0o077)
    try:
        scene.spawns.create(scene.job(wish()))
    finally:
        os.umask(before)
    place = scene.places.of(UUID)
    for path in (place.directory, place.directory.parent):
        assert path.stat().st_mode & 0o777 == 0o711
    assert place.console.stat().st_mode & 0o777 == 0o600


def test_it_runs_and_holds_what_was_asked_for(scene: Scene) -> None:
    job = scene.job(wish())
    scene.spawns.create(job)
    guest = scene.host.guests[UUID]
    assert (guest.is_on, job.result.power_state) == (True, PowerState.RUNNING)
    known = metadata.read(guest.domain)
    assert (known.name, known.flavor, known.image_ref) == ("a <new> one", FLAVOR, IMAGE)
    assert known.owner is not None
    assert (known.owner.project_id, known.owner.user_id) == ("p", "u")
    assert known.image_properties == {"os_type": "linux"}
    place = scene.places.of(UUID)
    assert sorted(path.name for path in place.directory.iterdir()) == ["console.log", "disk"]
    assert scene.places.unfinished() == []


#: What can fail, by the step that it fails in.
FAILURES = {"prove": "fetch", "build": "build", "define": "define", "start": "start"}


@pytest.mark.parametrize("what", FAILURES)
def test_whatever_fails_nothing_is_left(scene: Scene, what: str) -> None:
    scene.host.fails[what] = HypervisorError("it does not work")
    with pytest.raises(HypervisorError):
        scene.spawns.create(scene.job(wish()))
    assert scene.left() == []


@pytest.mark.parametrize("what", FAILURES)
def test_whenever_the_agent_dies_the_next_one_leaves_nothing(
    scene: Scene, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.host.fails[what] = Killed()
    with monkeypatch.context() as dying:
        # A death undoes nothing.
        dying.setattr(spawn, "undo_patiently", lambda *_, **__: None)
        with pytest.raises(Killed):
            scene.spawns.create(scene.job(wish()))
    assert scene.left() != []
    scene.again()
    (entry,) = scene.journal.open_entries()
    assert entry.step == FAILURES[what]
    assert scene.spawns.recover(Job(entry, "host", RecordedReports())) is False
    assert scene.left() == []


def test_one_that_was_made_when_the_agent_died_is_made(scene: Scene) -> None:
    job = scene.job(wish())
    scene.spawns.create(job)
    scene.places.of(UUID)._unfinished.touch()
    scene.again()
    (entry,) = scene.journal.open_entries()
    again = Job(entry, "host", RecordedReports())
    assert scene.spawns.recover(again) is True
    assert scene.places.unfinished() == []
    assert scene.host.guests[UUID].is_on


def test_what_no_journal_knows_of_is_swept_if_it_was_never_made(scene: Scene) -> None:
    made, busy, lost = (str(uuid.uuid4()) for _ in range(3))
    for one in (made, busy, lost):
        scene.places.of(one).make()
    scene.places.of(made).finish()
    (scene.places.root / "an operator's").mkdir()
    # Whoever asked for it may have spelt its id in another way.
    assert scene.spawns.sweep(lambda: {busy.upper()}) is True
    assert sorted(scene.left()) == sorted([made, busy, "an operator's"])


def test_what_could_not_be_removed_is_swept_while_the_agent_runs(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that is tried out would run until the agent's next start."""
    monkeypatch.setattr(release, "_LOOK_S", 0.01)
    scene.host.fails = {"start": HypervisorError("no"), "undefine": HypervisorError("no")}
    with pytest.raises(HypervisorError):
        scene.spawns.create(scene.job(wish()))
    again = release.Again(scene.tools, sweep=lambda: scene.spawns.sweep(frozenset))
    again.start()
    try:
        assert scene.left() == [UUID, UUID]
        scene.host.fails.clear()
        wait_for(lambda: scene.left() == [])
    finally:
        again.stop(time.monotonic() + 5)


def test_one_that_is_made_while_others_are_swept_is_left_alone(scene: Scene) -> None:
    scene.places.of(UUID).make()

    def just_made() -> frozenset[str]:
        scene.places.of(UUID).finish()
        return frozenset()

    assert scene.spawns.sweep(just_made) is True
    assert scene.left() == [UUID]


@pytest.mark.parametrize("what", ["mark", "journal"])
def test_one_that_cannot_be_kept_is_not_said_to_be_made(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What has the mark is swept at the next start, whatever it holds by then."""
    with monkeypatch.context() as patch:
        if what == "mark":
            patch.setattr(Place, "finish", refuse)
        else:
            refuse_release(scene, patch)
        with pytest.raises((OSError, JournalUnavailable)):
            scene.spawns.create(scene.job(wish()))
    assert scene.left() == []


def refuse(_place: Place) -> None:
    raise OSError(5, "Input/output error")


def refuse_release(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    real = scene.journal.begin_step

    def full(job_id: str, step: str, facts: Any) -> None:
        if step == "release":
            raise JournalUnavailable("its disk is full")
        real(job_id, step, facts)

    patch.setattr(scene.journal, "begin_step", full)


def test_one_that_the_next_agent_cannot_keep_is_not_said_to_be_made(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.spawns.create(scene.job(wish()))
    scene.places.of(UUID)._unfinished.touch()
    scene.again()
    (entry,) = scene.journal.open_entries()
    with monkeypatch.context() as patch:
        patch.setattr(Place, "finish", refuse)
        assert scene.spawns.recover(Job(entry, "host", RecordedReports())) is False
    assert scene.left() == []


def test_files_of_that_id_are_found_before_a_crash_could_have_them_removed(scene: Scene) -> None:
    scene.places.of(UUID).make()
    job = scene.job(wish())
    with pytest.raises(PlaceTaken):
        scene.spawns.create(job)
    scene.again()
    (entry,) = scene.journal.open_entries()
    scene.spawns.recover(Job(entry, "host", RecordedReports()))
    assert scene.left() == [UUID]


def test_a_network_that_is_not_there_is_found_before_anything_is_done(scene: Scene) -> None:
    with pytest.raises(NetworkNotFound):
        scene.spawns.create(scene.job(wish(networks=("wan",))))
    assert "prove" not in scene.host.done
    assert scene.left() == []


def test_an_instance_of_that_id_is_left_alone(scene: Scene) -> None:
    scene.spawns.create(scene.job(wish()))
    with pytest.raises(PlaceTaken):
        scene.spawns.create(scene.job(wish(job_id=str(uuid.uuid4()))))
    assert scene.host.guests[UUID].is_on
    # So are files whose domain is gone: they may be somebody's data.
    del scene.host.guests[UUID]
    with pytest.raises(PlaceTaken):
        scene.spawns.create(scene.job(wish(job_id=str(uuid.uuid4()))))
    assert scene.places.of(UUID).disk.read_bytes() == b"disk"


def test_one_that_had_not_begun_when_the_agent_died_touches_nothing(scene: Scene) -> None:
    scene.host.define(f"<domain><uuid>{UUID}</uuid></domain>")
    assert not scene.spawns.recover(scene.job(wish()))
    assert scene.left() == [UUID]


def test_a_cancelled_one_ends_with_its_reason(scene: Scene) -> None:
    job = scene.job(wish())
    job.stop(JobCancelled("not wanted"))
    with pytest.raises(JobCancelled):
        scene.spawns.create(job)
    assert scene.left() == []


def test_a_hypervisor_that_is_away_is_waited_for_before_something_is_left(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.host.fails["start"] = HypervisorError("no")
    tries = []

    def cut(_guest: PlayedGuest) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise HypervisorUnavailable("it restarts")

    monkeypatch.setattr(PlayedGuest, "cut_power", cut)
    with pytest.raises(HypervisorError):
        scene.spawns.create(scene.job(wish()))
    assert len(tries) == 3
    assert scene.left() == []


def delete(scene: Scene) -> None:
    scene.spawns.delete(scene.job(DeleteRequest(instance=InstanceRef(uuid=UUID))))


def test_a_deleted_one_leaves_nothing(scene: Scene) -> None:
    scene.spawns.create(scene.job(wish()))
    delete(scene)
    assert scene.left() == []
    assert scene.host.forgotten == [UUID]


def test_one_that_is_started_while_it_is_deleted_does_not_run_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.spawns.create(scene.job(wish()))
    guest, real = scene.host.guests[UUID], PlayedGuest.undefine

    def race(guest: PlayedGuest) -> None:
        guest.start()
        real(guest)

    monkeypatch.setattr(PlayedGuest, "undefine", race)
    delete(scene)
    assert not guest.is_on
    assert scene.left() == []


def test_one_that_is_not_there_is_deleted(scene: Scene) -> None:
    delete(scene)
    assert scene.left() == []


def test_a_deletion_that_fails_says_so_and_can_be_done_again(scene: Scene) -> None:
    scene.spawns.create(scene.job(wish()))
    scene.host.fails["undefine"] = HypervisorError("no")
    with pytest.raises(HypervisorError):
        delete(scene)
    assert scene.places.of(UUID).disk.exists(), "a domain that is there keeps its disk"
    scene.host.fails.clear()
    delete(scene)
    assert scene.left() == []


def test_files_that_do_not_go_are_told_of(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.spawns.create(scene.job(wish()))

    def refuse(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("compute_agent.places.shutil.rmtree", refuse)
    with pytest.raises(PlaceUnusable):
        delete(scene)
    # From now on it is a thing to be removed, and nobody's instance.
    assert scene.places.unfinished() == [UUID]


def test_the_mark_of_what_is_to_be_removed_goes_last(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.spawns.create(scene.job(wish()))
    seen: list[str] = []
    monkeypatch.setattr(
        "compute_agent.places.shutil.rmtree",
        lambda path: seen.extend(one.name for one in path.iterdir()),
    )
    scene.places.of(UUID).remove()
    assert seen == ["unfinished"]
