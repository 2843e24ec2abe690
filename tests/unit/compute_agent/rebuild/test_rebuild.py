# SPDX-License-Identifier: Apache-2.0
"""A rebuild, step by step: whatever fails or dies, the guest has one whole disk and runs as it did.

The guest and the image are played; the disk's files and the journal are real.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import (
    CaptureFailed,
    JobCancelled,
    JobInterrupted,
    NoUsableDisk,
    StillframeError,
)
from common.states import JobState, PowerState
from compute_agent import release
from compute_agent.jobs import Job
from compute_agent.journal import Journal
from compute_agent.proofs import ProofSettings, RebuildUnproven
from compute_agent.rebuild import Rebuilds
from compute_agent.rebuild_run import RebuildRefused, RebuildSettings
from tests.unit.compute_agent.rebuild.scene import (
    IMAGE,
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
    next_agent,
)
from tests.unit.compute_agent.stage import tools_of


def test_the_guest_runs_from_its_new_disk_and_nothing_of_the_old_one_is_left(
    rebuilds: Rebuilds, scene: Scene, job: Job
) -> None:
    rebuilds.run(job)
    assert scene.done == [*("find", "prove image", "build", "button", "write", "start", "forget")]
    assert (scene.state, scene.runs_from, scene.disk.read_bytes()) == (RUNNING, NEW, NEW)
    assert is_alone(scene)
    assert scene.metadata is not None
    assert IMAGE in scene.metadata
    assert "hw_disk_bus" in scene.metadata
    assert "image_type" not in scene.metadata
    outcome = job.finish(None)
    assert (outcome.state, outcome.power_state) == (JobState.DONE, RUNNING)
    assert [step.name for step in outcome.steps] == NAMES


@pytest.mark.parametrize(("start", "after"), [(None, OFF), (True, RUNNING)])
def test_a_guest_that_is_off_stays_so_unless_it_is_to_run(
    rebuilds: Rebuilds, scene: Scene, journal: Journal, start: bool | None, after: PowerState
) -> None:
    scene.state = OFF
    rebuilds.run(new_job(journal, start=start))
    assert (scene.state, scene.disk.read_bytes()) == (after, NEW)
    assert "button" not in scene.done


def test_a_guest_that_does_not_obey_its_button_loses_its_power(
    rebuilds: Rebuilds, scene: Scene, job: Job
) -> None:
    scene.obeys = False
    rebuilds.run(job)
    assert scene.done[3:5] == ["button", "cut"]
    assert scene.runs_from == NEW


def test_a_guest_that_stands_still_hears_no_button(
    rebuilds: Rebuilds, scene: Scene, job: Job
) -> None:
    scene.state = PowerState.PAUSED
    rebuilds.run(job)
    assert scene.done[3:5] == ["cut", "write"]
    assert scene.runs_from == NEW


@pytest.mark.parametrize("what", ["prove image", "build", "button", "write"])
def test_whatever_fails_before_the_proof_leaves_everything_as_it_was(
    rebuilds: Rebuilds, scene: Scene, job: Job, what: str
) -> None:
    scene.at[what] = fail(StillframeError("no"))
    if what == "button":
        scene.at = {"button": lambda: scene.at.pop("button") and fail(StillframeError("no"))()}
    with pytest.raises(StillframeError, match="no"):
        rebuilds.run(job)
    assert_as_it_was(scene)
    assert job.result.power_state is RUNNING


@pytest.mark.parametrize("how", ["does not start", "dies", "is not seen"])
def test_a_new_disk_that_is_not_seen_to_run_gives_way_to_the_old_one(
    rebuilds: Rebuilds, scene: Scene, job: Job, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def first(what: Callable[[], None]) -> None:
        scene.at["start"] = lambda: (scene.at.pop("start"), what())[-1]

    if how == "does not start":
        first(fail(CaptureFailed("no")))
    elif how == "dies":
        real = scene.start

        def start_and_die() -> None:
            real()
            scene.state = RUNNING if scene.runs_from == OLD else OFF

        monkeypatch.setattr(scene, "start", start_and_die)
    else:
        proof = ProofSettings(proof="port", running_s=0, timeout_s=0.0, port=22)
        rebuilds.settings = RebuildSettings(shutdown_timeout_s=1.0, proof=proof)
        monkeypatch.setattr(scene, "addresses", lambda: (), raising=False)
    with pytest.raises((RebuildUnproven, CaptureFailed)):
        rebuilds.run(job)
    assert_as_it_was(scene)


@pytest.mark.parametrize("step", NAMES[:-1])
@pytest.mark.parametrize("why", [JobCancelled("enough"), JobInterrupted("the agent stops")])
def test_a_job_that_is_to_end_undoes_what_it_did(
    rebuilds: Rebuilds,
    scene: Scene,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    why: StillframeError,
) -> None:
    real = job.begin_step
    monkeypatch.setattr(
        job, "begin_step", lambda name: (real(name), job.stop(why) if name == step else None)[0]
    )
    with pytest.raises(type(why)):
        rebuilds.run(job)
    assert_as_it_was(scene)


@pytest.mark.parametrize("at", NAMES)
@pytest.mark.parametrize("done", [False, True])
def test_a_kill_in_any_step_is_put_right_by_the_next_agent(
    rebuilds: Rebuilds,
    scene: Scene,
    job: Job,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    done: bool,
) -> None:
    """At the step's begin, or when it had done all that it does."""
    die_in(monkeypatch, at, done=done)
    # Where the disk is proven, the walk lets nothing through any more.
    with contextlib.suppress(Killed):
        rebuilds.run(job)
    monkeypatch.undo()
    next_agent(rebuilds, journal, job.entry.job_id)
    if NAMES.index(at) < NAMES.index("start"):
        assert_as_it_was(scene)
    else:
        assert (scene.state, scene.runs_from, scene.disk.read_bytes()) == (RUNNING, NEW, NEW)
        assert is_alone(scene)
        assert scene.forgotten


def test_an_agent_that_dies_when_all_was_put_back_does_not_boot_the_guest_again(
    rebuilds: Rebuilds, scene: Scene, job: Job, journal: Journal
) -> None:
    scene.at["write"] = fail(StillframeError("no"))
    with pytest.raises(StillframeError):
        rebuilds.run(job)
    starts = scene.starts
    assert rebuilds.recover(as_journalled(journal, job.entry.job_id)) is False
    assert_as_it_was(scene)
    assert scene.starts == starts


def test_an_old_disk_that_cannot_be_removed_now_is_removed_later(
    rebuilds: Rebuilds, scene: Scene, job: Job, journal: Journal, tmp_path: Path
) -> None:
    scene.at["forget"] = fail(StillframeError("libvirt is away"))
    rebuilds.run(job)
    job.finish(None)
    assert not is_alone(scene)
    scene.at.clear()
    release.give_back_all(tools_of(scene, journal, tmp_path))
    assert (is_alone(scene), scene.runs_from) == (True, NEW)
    assert journal.unreleased() == []


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("persistent", False, "switched off"),
        ("saved_memory", True, "suspended to disk"),
        ("source", "block", "no file"),
        ("runs_on", "/overlay", "another disk"),
        ("more_of_disk", "<backingStore><source file='/b'/></backingStore>", "files below"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused_before_anything_is_done(
    rebuilds: Rebuilds, scene: Scene, job: Job, attribute: str, value: object, words: str
) -> None:
    setattr(scene, attribute, value)
    with pytest.raises(RebuildRefused, match=words):
        rebuilds.run(job)
    assert scene.done == ["find"]


@pytest.mark.parametrize("attribute", ["more_of_source", "more_of_disk"])
def test_a_disk_that_no_snapshot_can_be_taken_of_is_not_rebuilt_either(
    rebuilds: Rebuilds, scene: Scene, job: Job, attribute: str
) -> None:
    setattr(scene, attribute, "<encryption format='luks'/>")
    with pytest.raises(NoUsableDisk, match="encrypted"):
        rebuilds.run(job)
    assert scene.done == ["find"]


def test_a_disk_beside_which_no_other_can_be_called_is_refused(
    rebuilds: Rebuilds, scene: Scene, job: Job
) -> None:
    """Nothing could be undone either where the name of what there is to remove is too long."""
    scene.disk = scene.disk.rename(scene.disk.with_name("d" * 231))
    with pytest.raises(RebuildRefused, match="shorter"):
        rebuilds.run(job)
    scene.disk = scene.disk.rename(scene.disk.with_name("d" * 230))
    rebuilds.run(new_job(rebuilds._tools.journal))
    assert scene.runs_from == NEW


def test_an_image_for_another_processor_is_refused_before_the_guest_hears_of_it(
    rebuilds: Rebuilds, scene: Scene, job: Job
) -> None:
    scene.properties["hw_architecture"] = "aarch64"
    with pytest.raises(RebuildRefused, match="aarch64"):
        rebuilds.run(job)
    assert_as_it_was(scene)
    assert "button" not in scene.done
