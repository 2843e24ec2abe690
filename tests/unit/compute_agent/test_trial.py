# SPDX-License-Identifier: Apache-2.0
"""Images that are tried out: what boots, what does not, and what could not be tried."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import StillframeError, VerifyFailed
from common.flatten import UnsafeImage
from common.glance import ImageServiceUnavailable
from common.messages import InstanceRef, VerifyRequest
from compute_agent import spawn, trial
from compute_agent.guest import metadata
from compute_agent.guest.errors import HypervisorError
from compute_agent.jobs import Job
from compute_agent.places import PlaceTaken
from compute_agent.trial import ImageDoesNotBoot
from tests.unit.compute_agent.conftest import RecordedReports
from tests.unit.compute_agent.spawn_scene import IMAGE, UUID, Killed, PlayedGuest, Scene


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(spawn, "_UNDO_WAIT_S", 0)
    scene = Scene(tmp_path)
    yield scene
    scene.journal.close()


def verify(scene: Scene) -> None:
    request = VerifyRequest(instance=InstanceRef(uuid=UUID), image_id=IMAGE)
    scene.trials.verify(scene.job(request))


def test_an_image_whose_guest_says_so_boots(scene: Scene) -> None:
    original = scene.host.define

    def define(xml: str) -> PlayedGuest:
        guest = original(xml)
        scene.places.of(UUID).console.write_text("booting\nguest: ready\n")
        assert metadata.read(guest.domain).is_throw_away
        assert guest.domain.find("devices/interface") is None
        return guest

    scene.host.define = define  # type: ignore[method-assign]
    verify(scene)
    assert scene.host.written[IMAGE]["stillframe_verified"] == "yes"
    assert scene.left() == []


def test_an_image_whose_guest_agent_is_there_boots(scene: Scene) -> None:
    scene.host.has_agent = True
    verify(scene)
    assert scene.host.written[IMAGE]["stillframe_verified"] == "yes"


@pytest.mark.parametrize("stays_on", [True, False], ids=["silent", "off"])
def test_an_image_that_does_not_boot_is_told(scene: Scene, stays_on: bool) -> None:
    scene.host.stays_on = stays_on
    with pytest.raises(ImageDoesNotBoot):
        verify(scene)
    assert scene.host.written[IMAGE]["stillframe_verified"] == "no"
    assert scene.left() == []


@pytest.mark.parametrize(
    ("error", "written"),
    [
        (UnsafeImage("it names a file of the host"), "no"),
        (VerifyFailed("other bytes"), "no"),
        (ImageServiceUnavailable("away"), None),
        (HypervisorError("no"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_what_is_proven_is_written_on_an_image(
    scene: Scene, error: StillframeError, written: str | None
) -> None:
    scene.host.fails["prove"] = error
    with pytest.raises(type(error)):
        verify(scene)
    assert scene.host.written.get(IMAGE, {}).get("stillframe_verified") == written
    assert scene.left() == []


def test_a_trial_that_died_leaves_nothing_and_has_no_result(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.host.fails["start"] = Killed()
    with monkeypatch.context() as dying:
        # A death undoes nothing.
        dying.setattr(trial, "undo_patiently", lambda *_, **__: None)
        with pytest.raises(Killed):
            verify(scene)
    assert scene.left() != []
    scene.again()
    (entry,) = scene.journal.open_entries()
    assert scene.trials.recover(Job(entry, "host", RecordedReports())) is False
    assert (scene.left(), scene.host.written) == ([], {})


@pytest.mark.parametrize("has_domain", [True, False], ids=["domain", "files"])
def test_an_instance_of_that_id_is_left_alone(scene: Scene, has_domain: bool) -> None:
    if has_domain:
        scene.host.define(f"<domain><uuid>{UUID}</uuid></domain>")
    else:
        scene.places.of(UUID).make()
    before = scene.left()
    with pytest.raises(PlaceTaken):
        verify(scene)
    assert scene.left() == before


def test_a_trial_that_had_not_begun_when_the_agent_died_touches_nothing(scene: Scene) -> None:
    scene.host.define(f"<domain><uuid>{UUID}</uuid></domain>")
    job = scene.job(VerifyRequest(instance=InstanceRef(uuid=UUID), image_id=IMAGE))
    assert not scene.trials.recover(job)
    assert scene.left() == [UUID]
