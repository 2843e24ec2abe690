# SPDX-License-Identifier: Apache-2.0
"""The agent is killed at each instant of a new instance: nothing of ours stays, all of theirs does.

An instant is before or after anything that is written down, on the disk, in the journal or
at libvirt; from then on the dead agent does nothing.
"""

from __future__ import annotations

import functools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from common.errors import StillframeError
from common.messages import CreateRequest, DeleteRequest, InstanceRef, VerifyRequest
from compute_agent import places, spawn
from compute_agent.guest.errors import HypervisorError
from compute_agent.jobs import Job
from compute_agent.journal import Journal
from tests.unit.compute_agent.conftest import RecordedReports
from tests.unit.compute_agent.spawn_scene import FLAVOR, IMAGE, UUID, Host, Killed, Scene

#: What leaves something behind.
WRITERS: tuple[tuple[Any, str], ...] = (
    *((Path, name) for name in ("mkdir", "touch", "chmod", "rename", "unlink")),
    (shutil, "rmtree"),
    (places, "_sync"),
    (Journal, "begin_step"),
    (Host, "do"),
)
#: More than any of them has.
INSTANTS_MAX = 100

Work = Callable[[Scene], None]


class Instants:
    """Counts the instants, and lets something happen at some: `None` never."""

    def __init__(self) -> None:
        self.now = 0
        self.dies_at: int | None = None
        self.happens: tuple[int, Callable[[], None]] | None = None

    def pass_(self) -> None:
        if self.happens is not None and self.now == self.happens[0]:
            self.happens[1]()
        if self.dies_at is not None and self.now >= self.dies_at:
            raise Killed
        self.now += 1


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, instants: Instants) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for owner, name in WRITERS:
            patch.setattr(owner, name, between(getattr(owner, name), instants))
        yield


def between(real: Callable[..., Any], instants: Instants) -> Callable[..., Any]:
    def act(*args: Any, **kwargs: Any) -> Any:
        instants.pass_()
        done = real(*args, **kwargs)
        instants.pass_()
        return done

    return act


def create(scene: Scene) -> None:
    named = InstanceRef(uuid=UUID, project_id="p", user_id="u")
    scene.spawns.create(scene.job(CreateRequest(instance=named, image_id=IMAGE, flavor=FLAVOR)))


def try_out(scene: Scene) -> None:
    scene.host.has_agent = True
    wanted = VerifyRequest(instance=InstanceRef(uuid=UUID), image_id=IMAGE)
    scene.trials.verify(scene.job(wanted))


def delete(scene: Scene) -> None:
    scene.spawns.delete(scene.job(DeleteRequest(instance=InstanceRef(uuid=UUID))))


def start_again(scene: Scene) -> bool:
    """Do what a starting agent does; tell whether an instance was made."""
    scene.again()
    is_made = False
    for entry in scene.journal.open_entries():
        job = Job(entry, "host", RecordedReports())
        if isinstance(entry.request, DeleteRequest):
            scene.spawns.delete(job)
        elif entry.step is not None:
            owner = scene.spawns if isinstance(entry.request, CreateRequest) else scene.trials
            is_made |= owner.recover(job)
    assert scene.spawns.sweep(lambda: ()) is True
    return is_made


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "_UNDO_WAIT_S", 0)


@pytest.fixture
def scenes(tmp_path: Path) -> Iterator[Callable[[], Scene]]:
    """Make a scene of its own for each try."""
    made: list[Scene] = []

    def make() -> Scene:
        directory = tmp_path / str(uuid.uuid4())
        directory.mkdir()
        made.append(Scene(directory))
        return made[-1]

    yield make
    for scene in made:
        scene.journal.close()


def is_killed(scene: Scene, work: Work, instants: Instants, patch: pytest.MonkeyPatch) -> bool:
    """Do some work and be killed; False: it was over before."""
    with counted(patch, instants), suppress(StillframeError):
        try:
            work(scene)
        except Killed:
            return True
    return False


def killed_at(instant: int, scene: Scene, work: Work, patch: pytest.MonkeyPatch) -> bool:
    """Do some work and be killed at an instant; False: it was over before."""
    instants = Instants()
    instants.dies_at = instant
    return is_killed(scene, work, instants, patch)


def test_an_instance_is_made_or_there_is_nothing_of_it(
    scenes: Callable[[], Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    for instant in range(INSTANTS_MAX):
        scene = scenes()
        if not killed_at(instant, scene, create, monkeypatch):
            assert instant > 20, "so many instants were tried"
            return
        if start_again(scene):
            names = sorted(one.name for one in scene.places.of(UUID).directory.iterdir())
            assert names == ["console.log", "disk"], instant
            assert scene.host.guests[UUID].is_on
        else:
            assert scene.left() == [], instant
    raise AssertionError("it never ends")


@pytest.mark.parametrize("work", [try_out, delete])
def test_of_a_trial_or_a_deletion_nothing_stays(
    scenes: Callable[[], Scene], monkeypatch: pytest.MonkeyPatch, work: Work
) -> None:
    for instant in range(INSTANTS_MAX):
        scene = scenes()
        if work is delete:
            create(scene)
            (made,) = scene.journal.open_entries()
            scene.journal._execute("DELETE FROM entries WHERE job_id = ?", made.job_id)
        if not killed_at(instant, scene, work, monkeypatch):
            assert instant > 8, "so many instants were tried"
            return
        start_again(scene)
        assert scene.left() == [], instant
    raise AssertionError("it never ends")


def put_theirs(scene: Scene) -> None:
    """Let somebody else have a directory of that name, unless ours is there already."""
    directory = scene.places.of(UUID).directory
    with suppress(FileExistsError):
        # Not by one of what is counted.
        os.mkdir(directory)
        (directory / "precious").write_text("theirs")


@pytest.mark.parametrize("work", [create, try_out])
def test_what_somebody_else_puts_there_stays_whenever_that_is(
    scenes: Callable[[], Scene], monkeypatch: pytest.MonkeyPatch, work: Work
) -> None:
    """At each instant until the directory is ours, and killed at each one after it."""
    for put_at in range(INSTANTS_MAX):
        goes_on = True
        for instant in range(put_at, INSTANTS_MAX):
            scene, instants = scenes(), Instants()
            precious = scene.places.of(UUID).directory / "precious"
            instants.happens = (put_at, functools.partial(put_theirs, scene))
            instants.dies_at = instant
            goes_on = is_killed(scene, work, instants, monkeypatch)
            if instant == put_at and not precious.exists():
                assert put_at > 10, "it was put there at so many instants"
                return
            start_again(scene)
            assert precious.read_text() == "theirs", (put_at, instant)
            assert scene.left() == [UUID], (put_at, instant)
            if not goes_on:
                break
        assert not goes_on
    raise AssertionError("it never ends")


def test_a_domain_that_somebody_else_defines_meanwhile_stays(scenes: Callable[[], Scene]) -> None:
    scene = scenes()

    def taken(_xml: str) -> Any:
        scene.host.define = real  # type: ignore[method-assign]
        scene.host.define(f"<domain><uuid>{UUID}</uuid><devices/></domain>")
        raise HypervisorError("it is defined already")

    real = scene.host.define
    scene.host.define = taken  # type: ignore[method-assign]
    with pytest.raises(HypervisorError):
        create(scene)
    assert scene.left() == [UUID], "their domain, and no file of ours"
    assert list(scene.host.guests) == [UUID]
