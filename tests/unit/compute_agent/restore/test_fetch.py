# SPDX-License-Identifier: Apache-2.0
"""What arrives is what Glance hashed, or nothing is left of it; and a stop is a stop."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from common import context
from common.errors import JobCancelled, VerifyFailed
from common.glance import ImageNotFound, ImageService, ImageServiceUnavailable
from compute_agent.restore import fetch
from compute_agent.restore.restorer import Restorer
from compute_agent.stream.throttle import Throttle
from tests.unit.compute_agent.restore.conftest import Prove
from tests.unit.compute_agent.restore.shelf import IMAGE, MIB, SETTINGS, SIZE, Errand, Shelf

#: Two MiB of data, then zeros, with an island in them.
CONTENT = os.urandom(2 * MIB) + (bytes(MIB + 12345) + b"island").ljust(2 * MIB, b"\0")
GONE = ImageServiceUnavailable("the download from the image service broke off")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_BACKOFF_S", (0.0,))


def raising(error: Exception, *, times: int) -> Callable[[int], None]:
    """Break the first `times` downloads off before their third chunk."""
    left = [times]

    def passing(number: int) -> None:
        if number == 2 and left[0]:
            left[0] -= 1
            raise error

    return passing


def test_the_file_is_the_image_byte_for_byte(shelf: Shelf, prove: Prove) -> None:
    shelf.put(CONTENT, "raw")
    assert prove().path.read_bytes() == CONTENT


@pytest.mark.parametrize("algorithm", ["md5", "sha256", "sha512"])
def test_the_hash_is_of_the_kind_that_glance_uses(
    shelf: Shelf, prove: Prove, room: Path, algorithm: str
) -> None:
    wrong = hashlib.new(algorithm, b"something else").hexdigest()
    right = hashlib.new(algorithm, CONTENT).hexdigest()
    shelf.put(CONTENT, "raw", hash_algorithm=algorithm, hash_value=wrong)
    with pytest.raises(VerifyFailed, match=f"{IMAGE}.*os_hash_value"):
        prove()
    assert list(room.iterdir()) == []
    shelf.put(CONTENT, "raw", hash_algorithm=algorithm, hash_value=right)
    assert prove().path.read_bytes() == CONTENT


@pytest.mark.parametrize("algorithm", ["md5", None])
def test_our_own_hash_counts_too(shelf: Shelf, prove: Prove, algorithm: str | None) -> None:
    shelf.put(
        CONTENT,
        "raw",
        hash_algorithm=algorithm,
        hash_value=algorithm and hashlib.new(algorithm, CONTENT).hexdigest(),
        properties={"stillframe_sha512": hashlib.sha512(b"something else").hexdigest()},
    )
    with pytest.raises(VerifyFailed, match="stillframe_sha512"):
        prove()


@pytest.mark.parametrize("told_bytes", [SIZE - 1, SIZE + 1, MIB])
def test_an_image_of_another_length_is_not_the_image(
    shelf: Shelf, prove: Prove, room: Path, told_bytes: int
) -> None:
    shelf.put(CONTENT, "raw", size_bytes=told_bytes)
    with pytest.raises(VerifyFailed, match="size"):
        prove(most_bytes=2 * SIZE)
    assert list(room.iterdir()) == []


@pytest.mark.usefixtures("no_waiting")
def test_a_download_that_breaks_off_begins_again_at_its_first_byte(
    shelf: Shelf, prove: Prove, errand: Errand, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.put(CONTENT, "raw")
    shelf.passing = raising(GONE, times=SETTINGS.retries)
    assert prove().path.read_bytes() == CONTENT
    assert shelf.downloads == SETTINGS.retries + 1
    again = [line for line in caplog.messages if "from byte 0" in line]
    assert len(again) == SETTINGS.retries
    assert errand.told[-1][1:] == (SIZE, SIZE)


@pytest.mark.usefixtures("no_waiting")
def test_it_is_not_tried_for_ever(shelf: Shelf, prove: Prove, room: Path) -> None:
    shelf.put(CONTENT, "raw")
    shelf.passing = raising(GONE, times=9)
    with pytest.raises(ImageServiceUnavailable):
        prove()
    assert shelf.downloads == SETTINGS.retries + 1
    assert list(room.iterdir()) == []


def test_an_image_that_is_deleted_meanwhile_is_not_waited_for(
    shelf: Shelf, prove: Prove, room: Path
) -> None:
    shelf.put(CONTENT, "raw")
    shelf.passing = raising(ImageNotFound("the image was deleted meanwhile"), times=1)
    with pytest.raises(ImageNotFound):
        prove()
    assert shelf.downloads == 1
    assert list(room.iterdir()) == []


def test_a_stop_waits_neither_for_glance_nor_for_the_throttle(
    shelf: Shelf, prove: Prove, errand: Errand, room: Path
) -> None:
    shelf.put(CONTENT, "raw")
    goes_on, went_on = threading.Event(), threading.Event()

    def stand_still(number: int) -> None:
        if number == 1:
            errand.stopped.set()
            goes_on.wait(60)
            went_on.set()

    shelf.passing = stand_still
    try:
        with pytest.raises(JobCancelled):
            prove()
        assert not went_on.is_set()
    finally:
        goes_on.set()
    assert list(room.iterdir()) == []


@pytest.mark.parametrize("whose", ["the host's", "the job's"])
def test_the_narrowest_bound_rules(shelf: Shelf, errand: Errand, room: Path, whose: str) -> None:
    shelf.put(CONTENT, "raw")
    bound = Throttle(20 * MIB)
    errand.throttle = bound if whose == "the job's" else Throttle(0)
    host = bound if whose == "the host's" else Throttle(0)
    restorer = Restorer(cast(ImageService, shelf), host, SETTINGS)
    began = time.monotonic()
    restorer.prove(errand, IMAGE, room, most_bytes=SIZE, task_state=None)
    # 4 MiB, less the burst of a tenth of a second: never faster, however fast the machine is.
    assert time.monotonic() - began >= (SIZE - 2 * MIB) / (20 * MIB) - 0.01


def test_glance_is_asked_under_the_jobs_request(shelf: Shelf, prove: Prove) -> None:
    shelf.put(CONTENT, "raw")
    seen: list[str | None] = []

    def note(_number: int) -> None:
        bound = context.current()
        seen.append(bound.request_id if bound else None)

    shelf.passing = note
    with context.bound(context.RequestContext(request_id="req-1")):
        prove()
    assert set(seen) == {"req-1"}
