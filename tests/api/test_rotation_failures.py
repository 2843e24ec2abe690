# SPDX-License-Identifier: Apache-2.0
"""A rotation that is killed, fails or is told twice is done once, and no good backup goes by it."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Callable

import pytest

from api_service.store.models import JobRow
from common import clock
from common.glance import ImageServiceUnavailable
from tests.api.clouds import Cloud, RecordedCasts
from tests.api.memory_images import MemoryImages
from tests.api.rotated import Rotated

AWAY = ImageServiceUnavailable("the image service cannot be reached")
WAIT_S = 20.0


class Killed(BaseException):
    """The process is gone."""


def kill_at(images: MemoryImages, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Kill whoever deletes for the `count`th time, having deleted."""
    delete = images.delete

    def fatal(image_id: str) -> None:
        delete(image_id)
        if len(images.deleted) == count:
            raise Killed

    monkeypatch.setattr(images, "delete", fatal)


@pytest.mark.parametrize("rotation", [0, 1])
def test_another_process_ends_what_one_that_was_killed_had_begun(
    backups: Rotated,
    cloud: Cloud,
    casts: RecordedCasts,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    rotation: int,
) -> None:
    for _ in range(3):
        backups.take(5)
    last = backups.take(rotation)
    backups.cloud.images.deleted.clear()
    kill_at(cloud.images, monkeypatch, 1)
    with pytest.raises(Killed):
        cloud.rotator.round()
    other = Cloud(database_url, cloud.images, casts)
    try:
        assert other.rotator.round()
    finally:
        other.database.engine.dispose()
    assert backups.standing() == [last][:rotation]
    assert {*cloud.images.deleted} == {*backups.made} - {*backups.standing()}


def test_while_glance_is_away_nothing_is_lost_and_it_is_tried_again(
    backups: Rotated, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    backups.take(1)
    last = backups.take(1)
    cloud.images.failure = AWAY
    assert not cloud.rotator.round()
    assert any("tried again" in line for line in caplog.messages)
    cloud.images.failure = None
    assert backups.standing() == backups.made
    assert backups.round() == [last]


def test_a_glance_that_fails_amid_leaves_the_rest_for_later(
    backups: Rotated, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        backups.take(1)

    def refuse(_: str) -> None:
        raise AWAY

    with monkeypatch.context() as patch:
        patch.setattr(cloud.images, "delete", refuse)
        assert not cloud.rotator.round()
    assert backups.standing() == backups.made
    assert backups.round() == backups.made[-1:]


def test_after_a_day_it_is_left_to_the_next_one(
    backups: Rotated, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        backups.take(1)
    with cloud.database.write() as session:
        for row in session.query(JobRow):
            row.finished_at = clock.now() - dt.timedelta(days=2)
    cloud.images.failure = AWAY
    for _ in backups.made:
        assert not cloud.rotator.round()
    assert [line for line in caplog.messages if "is given up" in line]
    cloud.images.failure = None
    assert backups.round() == backups.made
    last = backups.take(1)
    assert backups.round() == [last]


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_several_processes_one_rotates_when_it_is_told(
    backups: Rotated, cloud: Cloud, casts: RecordedCasts, database_url: str
) -> None:
    other = Cloud(database_url, cloud.images, casts)
    cloud.rotator, other.rotator = (one.make_rotator(interval_s=60.0) for one in (cloud, other))
    with contextlib.ExitStack() as stopping:
        stopping.callback(other.database.engine.dispose)
        for one in (cloud, other):
            one.rotator.start()
            stopping.callback(one.rotator.stop, time.monotonic() + WAIT_S)
        for _ in range(4):
            backups.take(1)
            other.rotator.poke()
        wait_for(lambda: backups.standing() == backups.made[-1:])
    assert sorted(cloud.images.deleted) == sorted(backups.made[:-1]), "each once"
