# SPDX-License-Identifier: Apache-2.0
"""Which backups go when one is done: the ledger's own, only active ones, no good one early."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence

import pytest

from api_service.backups import BackupWish
from api_service.rotation import Rotation
from api_service.store.backups import BackupList
from api_service.store.records import Job
from common import context
from common.states import JobKind, JobState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud
from tests.api.rotated import Rotated


@pytest.mark.parametrize("rotation", [0, 1, 2, 3])
@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "all due at once"])
def test_so_many_of_the_newest_are_kept(backups: Rotated, rotation: int, at_once: bool) -> None:
    for _ in range(3):
        backups.take(rotation)
        if not at_once:
            backups.round()
    assert backups.round() == backups.made[3 - rotation :]


def test_each_says_for_itself_how_many_are_kept(backups: Rotated) -> None:
    for rotation in (5, 5, 5, 2):
        backups.take(rotation)
    assert backups.round() == backups.made[-2:]


def test_one_that_is_seen_to_late_takes_no_place_from_newer_ones(backups: Rotated) -> None:
    first, second, third = backups.take(5), backups.take(1), backups.take(5)
    assert backups.round() == [second, third]
    assert first not in backups.standing()


def test_nothing_goes_before_the_new_one_is_done(backups: Rotated, cloud: Cloud) -> None:
    """Its image may be active while nobody has verified it."""
    backups.take(1)
    image_id, job_id = backups.ask(1)
    cloud.images.activate(image_id)
    accepted = agent_says.accepted(job_id, backups.instance.uuid, image_id, kind=JobKind.BACKUP)
    cloud.report("job_accepted", accepted)
    assert backups.round() == backups.made
    backups.end(job_id, image_id)
    assert backups.round() == [image_id]


@pytest.mark.parametrize("state", [JobState.ERROR, JobState.CANCELLED])
def test_one_that_came_to_nothing_removes_nothing(backups: Rotated, state: JobState) -> None:
    good = [backups.take(2), backups.take(2)]
    backups.take(0, state)
    backups.cloud.reaper.round()
    assert backups.round() == good


def test_nor_does_it_count(backups: Rotated) -> None:
    """Its image stands, active and verified by nobody: the reaper has not seen to it yet."""
    first = backups.take(2)
    failed = backups.take(2, JobState.ERROR)
    backups.cloud.images.activate(failed)
    assert backups.round() == [first, failed]
    third = backups.take(2)
    assert backups.round() == [first, failed, third]


@pytest.mark.parametrize("status", ["deactivated", "killed", "saving"])
def test_only_active_ones_count(backups: Rotated, cloud: Cloud, status: str) -> None:
    first, second = backups.take(2), backups.take(2)
    cloud.images.records[second]["status"] = status
    third = backups.take(2)
    assert backups.round() == [first, second, third]


def test_what_its_user_writes_on_an_image_changes_nothing(backups: Rotated) -> None:
    other = {"image_type": "test", "instance_uuid": str(uuid.uuid4()), "user_id": "eve"}
    backups.take(1, metadata=other)
    backups.cloud.images.records[backups.made[0]].update(backup_type="x", owner="p-other")
    assert backups.round() == backups.made
    last = backups.take(1)
    assert backups.round() == [last]


def test_images_that_look_like_backups_neither_count_nor_go(backups: Rotated, cloud: Cloud) -> None:
    first = backups.take(2)
    looks = {**cloud.images.records[first], "owner": "p-other", "visibility": "public"}
    cloud.images.records |= {str(uuid.uuid4()): dict(looks) for _ in range(3)}
    snapshot = cloud.snapshot(backups.instance.uuid).json["image_id"]
    backups.end(cloud.casts.next()["job_id"], snapshot, kind=JobKind.SNAPSHOT)
    cloud.images.records[snapshot].update(image_type="backup", backup_type="daily")
    second, third = backups.take(2), backups.take(2)
    assert backups.round() == [second, third]
    assert cloud.images.deleted == [first]


def test_each_type_and_each_instance_is_rotated_by_itself(backups: Rotated, cloud: Cloud) -> None:
    other = agent_says.instance()
    cloud.announce(backups.instance, other)
    theirs = Rotated(cloud, other)
    kept = [backups.take(1, backup_type=one) for one in ("daily", "Daily", "daily ", "weekly")]
    kept.append(theirs.take(1))
    assert backups.round() == kept[:4]
    assert theirs.standing() == kept[4:]


def test_a_protected_one_stays_and_that_is_told(
    backups: Rotated, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = backups.take(1), backups.take(1)
    cloud.images.records[first]["protected"] = True
    third = backups.take(1)
    with caplog.at_level(logging.INFO):
        assert backups.round() == [first, third]
    assert second in cloud.images.deleted
    assert any("1 removed, 1 protected" in line for line in caplog.messages)

    cloud.images.records[first]["protected"] = False
    assert backups.round() == [first, third], "the next one's turn"
    fourth = backups.take(1)
    assert backups.round() == [fourth]


def test_one_that_its_user_deleted_is_fine(backups: Rotated, cloud: Cloud) -> None:
    first, second, third = (backups.take(2) for _ in range(3))
    del cloud.images.records[first], cloud.images.records[second]
    fourth = backups.take(2)
    assert backups.round() == [third, fourth]
    assert cloud.job_of(first)["removed_at"] is not None


def test_if_the_new_one_is_gone_no_other_goes_in_its_place(backups: Rotated, cloud: Cloud) -> None:
    first = backups.take(2)
    second = backups.take(2)
    third = backups.take(1)
    del cloud.images.records[third]
    assert backups.round() == [first, second]


def test_what_an_increment_lies_on_goes_after_it(backups: Rotated, cloud: Cloud) -> None:
    first = backups.take(1)
    second = backups.increment(1, first)
    third = backups.increment(1, second)
    assert backups.round() == [first, second, third]
    fourth = backups.take(1)
    assert backups.round() == [fourth]
    assert cloud.images.deleted == [third, second, first]


def test_a_snapshot_that_lies_on_a_backup_holds_it(backups: Rotated, cloud: Cloud) -> None:
    first = backups.take(1)
    snapshot = cloud.snapshot(backups.instance.uuid).json["image_id"]
    job_id = cloud.casts.next()["job_id"]
    backups.end(job_id, snapshot, parent=first, kind=JobKind.SNAPSHOT)
    second = backups.take(1)
    assert backups.round() == [first, second]
    del cloud.images.records[snapshot]
    third = backups.take(1)
    assert backups.round() == [third]


@pytest.mark.parametrize("incremental", ["true", "false"])
def test_while_an_increment_is_made_nothing_goes_that_it_may_lie_on(
    backups: Rotated, incremental: str
) -> None:
    first, second = backups.take(1), backups.take(1)
    image_id, job_id = backups.ask(5, metadata={"stillframe:incremental": incremental})
    held = [first] if incremental == "true" else []
    assert backups.round() == [*held, second, image_id]
    backups.end(job_id, image_id, JobState.ERROR)
    assert backups.round() == [second, image_id]


def test_every_disks_image_of_a_backup_goes_the_roots_last(backups: Rotated, cloud: Cloud) -> None:
    image_id, job_id = backups.ask(1)
    others = (str(uuid.uuid4()), str(uuid.uuid4()))
    for one in others:
        cloud.images.create(one, {"name": "of a disk"})
    backups.end(job_id, image_id, disks=others)
    cloud.images.records[others[0]]["protected"] = True
    backups.take(1)
    assert backups.round() == backups.made, "one of them is protected"
    cloud.images.records[others[0]]["protected"] = False
    backups.take(1)
    assert backups.round() == backups.made[-1:]
    assert cloud.images.deleted[-3:] == [others[1], others[0], image_id]


def test_one_that_another_service_asked_the_agent_for_is_rotated_too(
    backups: Rotated, cloud: Cloud
) -> None:
    first = backups.take(1)
    image_id, job_id = str(uuid.uuid4()), str(uuid.uuid4())
    cloud.images.create(image_id, {"name": "theirs"})
    backups.made.append(image_id)
    terms = {"kind": JobKind.BACKUP, "backup_type": "daily", "rotation": 1}
    cloud.report(
        "job_accepted", agent_says.accepted(job_id, backups.instance.uuid, image_id, **terms)
    )
    assert cloud.task_state(backups.instance.uuid) == "image_backup"
    backups.end(job_id, image_id)
    assert first in cloud.images.records
    assert backups.round() == [image_id]


def test_a_policys_backups_go_as_it_says_and_nobody_elses(backups: Rotated, cloud: Cloud) -> None:
    policy_id, theirs = str(uuid.uuid4()), backups.take(1)
    wish = BackupWish(name="of a policy", backup_type="daily", rotation=None)
    caller = context.new(user_id=agent_says.USER, project_id=agent_says.PROJECT)
    for _ in range(3):
        instance = cloud.inventory.instance(backups.instance.uuid)
        assert instance is not None
        job = cloud.backups.request(caller, instance, wish, policy_id=policy_id)
        cloud.dispatcher.poke(job.id)
        assert cloud.casts.next()["rotation"] is None
        backups.made.append(job.image_id)
        backups.end(job.id, job.image_id)
    assert backups.round() == backups.made, "without a policy's word all are kept"

    asked: list[str] = []

    def keep_the_oldest(policy: str, active: Sequence[Job]) -> list[Job]:
        asked.append(policy)
        return list(active[-1:])

    rotation = Rotation(BackupList(cloud.database), cloud.images, keep_the_oldest)
    newest = cloud.ledger.find(str(cloud.job_of(backups.made[-1])["id"]))
    assert newest is not None
    rotation.settle(newest)
    assert backups.standing() == [theirs, backups.made[1]]
    assert asked == [policy_id]
