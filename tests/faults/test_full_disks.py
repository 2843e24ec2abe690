# SPDX-License-Identifier: Apache-2.0
"""Journal and database have no room for a while: no guest stands still, no job is lost."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.faults import checks
from tests.functional.conftest import booted, small_file_system, started
from tests.functional.snapshots import ask, post_action, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

BODY = {"createImage": {"name": "full"}}


@pytest.fixture(scope="module")
def cloud(make_cloud: Callable[..., Cloud]) -> Iterator[Cloud]:
    """A cloud whose state directory is a small file system of its own."""
    cloud = make_cloud("small-state")
    with small_file_system(cloud.directory / "state", size_mib=32), started(cloud):
        yield cloud


@pytest.fixture(scope="module")
def guest(cloud: Cloud) -> Iterator[Guest]:
    with booted(cloud) as guest:
        yield guest


@contextlib.contextmanager
def full(cloud: Cloud) -> Iterator[None]:
    """Leave no byte for the journal and the database: neither has room in its log any more."""
    state = cloud.directory / "state"
    ballast = state / "ballast"
    for path in state.glob("*.sqlite"):
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    try:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert shutil.disk_usage(state).free == 0
        yield
    finally:
        ballast.unlink()


def test_it_is_full_in_the_upload(cloud: Cloud, guest: Guest, tmp_path: Path) -> None:
    asked = ask(cloud, guest)
    wait_for(lambda: asked.job()["step"] == "stream", "the upload")
    with full(cloud):
        checks.assert_runs(guest, "full in the upload")
        # Until the upload is over, and the next step would be written down.
        wait_for(lambda: (asked.image() or {}).get("status") != "saving", "the end of the upload")
        checks.assert_runs(guest, "full in the upload")
    asked.ended()
    checks.assert_whole_or_gone(asked, tmp_path, "full in the upload")
    checks.assert_untouched(cloud, guest, "full in the upload")
    assert ask(cloud, guest).ended()["state"] == "done", "nobody had to start anything again"


def test_it_is_full_when_a_snapshot_is_asked_for(cloud: Cloud, guest: Guest) -> None:
    with full(cloud):
        answer = post_action(cloud, guest, BODY)
        assert answer.status_code in (requests.codes.accepted, requests.codes.unavailable)
        checks.assert_runs(guest, "full at the request")
    wait_for(lambda: cloud.server(guest)["OS-EXT-STS:task_state"] is None, "a free instance")
    checks.assert_untouched(cloud, guest, "full at the request")
    assert ask(cloud, guest).ended()["state"] == "done", "nobody had to start anything again"
    images = requests.get(f"{cloud.glance.endpoint}/v2/images?name=full", timeout=10).json()
    assert all(image["status"] == "active" for image in images["images"])
