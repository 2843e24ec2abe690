# SPDX-License-Identifier: Apache-2.0
"""Images on their way: what is tied together stays so, and a Glance that hangs holds nobody up."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import JobCancelled, JobInterrupted
from common.glance import Image, ImageNotFound
from common.messages import disk_image_id, second_image_id
from common.reports import DiskImage
from compute_agent.capture.base import Export
from compute_agent.jobs import Job
from compute_agent.journal import Journal
from compute_agent.publication import Publication
from compute_agent.tools import Tools
from tests.unit.compute_agent.stage import Stage, tools_of

SIZE_BYTES = 1 << 16
EXPORTS = tuple(Export(target=name, socket_path="/s", name=name) for name in ("vda", "vdb"))


class Glance:
    """Keeps records; stands still while `hangs` is set, or only where it makes one."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self.hangs = self.makes_records_late = False
        self.goes_on = threading.Event()
        self.on_delete: Callable[[str], object] = lambda _image_id: None

    def show(self, image_id: str) -> Image:
        self._answer(image_id)
        record = self.records[image_id]
        return Image(
            id=image_id,
            name="n",
            status=record["status"],
            owner="p",
            size_bytes=SIZE_BYTES,
            hash_algorithm="sha512",
            hash_value=record["sha512"],
            disk_format="qcow2",
            container_format="bare",
            min_disk_gib=0,
            min_ram_mib=0,
            properties={},
        )

    def update(self, image_id: str, changes: dict[str, Any]) -> None:
        self._answer(image_id)
        self.records[image_id].update(changes)

    def duplicate_record(self, image_id: str, new_id: str, *_: Any) -> None:
        if self.makes_records_late:
            self.goes_on.wait(30)
        self.records[new_id] = self.records[image_id] | {"status": "queued", "sha512": ""}

    def delete(self, image_id: str) -> None:
        self.records.pop(image_id, None)
        self.on_delete(image_id)

    def _answer(self, image_id: str) -> None:
        if self.hangs:
            self.goes_on.wait(30)
        if image_id not in self.records:
            raise ImageNotFound("gone")


@pytest.fixture
def glance() -> Glance:
    return Glance()


@pytest.fixture
def tools(journal: Journal, tmp_path: Path, glance: Glance) -> Tools:
    anything: Any = glance
    return dataclasses.replace(tools_of(Stage(), journal, tmp_path), images=anything)


@pytest.fixture
def publication(tools: Tools, job: Job, glance: Glance) -> Publication:
    """Two disks' images, sent and not yet verified."""
    root_id = job.request.image_id
    for image_id, disk in ((root_id, "vda"), (disk_image_id(root_id, "vdb"), "vdb")):
        job.result.images.append(
            DiskImage(image_id=image_id, disk=disk, size_bytes=SIZE_BYTES, sha512="right")
        )
        glance.records[image_id] = {
            "status": "active",
            "sha512": "right",
            "stillframe_root_image": root_id,
        }
    return Publication(tools, job)


def test_a_stopped_job_does_not_wait_for_a_glance_that_hangs(
    publication: Publication, job: Job, glance: Glance
) -> None:
    """Its capture is open, and the guest may stand still for want of space until it ends."""
    glance.hangs = True
    threading.Timer(0.1, job.stop, [JobCancelled("no room")]).start()
    try:
        with pytest.raises(JobCancelled, match="no room"):
            publication.verify(EXPORTS)
    finally:
        glance.goes_on.set()


def test_a_job_that_is_cancelled_before_it_began_does_not_wait_for_glance_either(
    publication: Publication, job: Job, glance: Glance
) -> None:
    glance.hangs = True
    threading.Timer(0.1, job.stop, [JobCancelled("cancelled")]).start()
    try:
        with pytest.raises(JobCancelled, match="cancelled"):
            publication.require_queued()
    finally:
        glance.goes_on.set()


def test_what_glance_does_not_delete_in_time_is_left_to_the_api(
    publication: Publication, glance: Glance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compute_agent.publication._DISCARD_TIMEOUT_S", 0.1)
    glance.hangs = True
    began = time.monotonic()
    try:
        publication.discard()
        assert time.monotonic() - began < 10
    finally:
        glance.goes_on.set()


def test_an_increment_stays_one_whatever_format_is_configured_meanwhile(
    tools: Tools, job: Job, publication: Publication, glance: Glance
) -> None:
    raw = dataclasses.replace(tools.settings, image_format="raw")
    again = Publication(dataclasses.replace(tools, settings=raw), job)
    root, other = job.result.images
    job.result.images[0] = dataclasses.replace(root, parent_image_id="below", chain_length=1)
    again._present.add(other.image_id)
    again.take_up()
    for image in (root, other):
        glance.records[image.image_id]["status"] = "queued"
    again.describe()
    formats = [glance.records[image.image_id]["disk_format"] for image in (root, other)]
    assert formats == ["qcow2", "raw"]


def test_a_record_that_a_stopped_job_no_longer_waits_for_goes_when_it_comes(
    publication: Publication, job: Job, glance: Glance
) -> None:
    """Whoever cleans up after the job would not find it yet, and nobody looks again."""
    other = job.result.images[1].image_id
    del glance.records[other]
    glance.makes_records_late = True
    threading.Timer(0.1, job.stop, [JobCancelled("no room")]).start()
    with pytest.raises(JobCancelled, match="no room"):
        publication.describe()
    has_gone = threading.Event()
    glance.on_delete = lambda image_id: image_id == other and has_gone.set()
    glance.goes_on.set()
    assert has_gone.wait(10)
    assert other not in glance.records


def test_the_job_that_the_next_agent_goes_on_with_keeps_a_record_that_comes_late(
    publication: Publication, job: Job, glance: Glance
) -> None:
    """Glance takes no other record of an id that was deleted."""
    other = job.result.images[1].image_id
    del glance.records[other]
    job.stop(JobInterrupted("the compute agent was stopped"))
    with contextlib.suppress(JobInterrupted):
        publication.describe()
    assert other in glance.records


def test_a_disk_that_hangs_does_not_hold_up_the_end_of_a_stopped_job(
    publication: Publication, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(Publication, "_layout", lambda *_: goes_on.wait(30))
    threading.Timer(0.1, job.stop, [JobCancelled("no room")]).start()
    try:
        with pytest.raises(JobCancelled, match="no room"):
            publication.stream(EXPORTS)
    finally:
        goes_on.set()


def test_images_name_the_root_image_that_took_the_place_of_another(
    publication: Publication, job: Job, glance: Glance, monkeypatch: pytest.MonkeyPatch
) -> None:
    root_id = job.request.image_id
    glance.records[root_id]["sha512"] = "wrong"

    def send(_publication: Publication, at: int, *_: Any) -> None:
        glance.records[job.result.images[at].image_id] |= {"status": "active", "sha512": "right"}

    monkeypatch.setattr(Publication, "_layout", lambda *_: None)
    monkeypatch.setattr(Publication, "_stream", send)
    publication.verify(EXPORTS)
    second, other = second_image_id(root_id), disk_image_id(root_id, "vdb")
    assert set(glance.records) == {second, other}
    assert glance.records[other]["stillframe_root_image"] == second


def test_an_image_that_was_not_verified_goes_though_its_agent_died_before(
    publication: Publication, job: Job, glance: Glance
) -> None:
    first = job.result.images[0]
    second = second_image_id(first.image_id)
    glance.records[second] = dict(glance.records[first.image_id])
    job.result.images[0] = DiskImage(image_id=second, disk="vda", sha512="right")
    publication.take_up()
    publication.publish()
    assert first.image_id not in glance.records
    assert glance.records[second]["stillframe_sha512"] == "right"


def test_whoever_deletes_a_disk_s_image_means_to_cancel_once_it_is_there(
    publication: Publication, job: Job
) -> None:
    root, other = (image.image_id for image in job.result.images)
    assert publication.present() == [root]
    publication.describe()
    assert publication.present() == [root, other]
