# SPDX-License-Identifier: Apache-2.0
"""From frozen views to images that can be trusted: describe, stream, verify, publish.

The steps of `snapshot` that face Glance, for the image of the root disk and, if
all disks were asked for, one of each other disk. The bytes go through once;
what is only known when the whole has been verified is written onto the image
last.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from common import clock
from common.errors import JobCancelled, JobInterrupted, StillframeError, VerifyFailed
from common.glance import Image, ImageNotFound, ImageRefused
from common.messages import disk_image_id, second_image_id
from common.reports import CaptureFigures, DiskImage
from common.states import TaskState
from compute_agent import upload
from compute_agent.capture.base import Export
from compute_agent.disks.nbd import ALLOCATION_CONTEXT, NbdClient
from compute_agent.jobs import Job
from compute_agent.stream.layouts import make_layout
from compute_agent.stream.pump import Digest, Layout, Paced, Pump, Stopped
from compute_agent.stream.throttle import Throttles
from compute_agent.teller import Teller
from compute_agent.tools import Tools

LOG = logging.getLogger(__name__)

R = TypeVar("R")

#: The job shall end, even if Glance does not answer: the API deletes what is left.
_DISCARD_TIMEOUT_S = 10.0


class Publication:
    """The images of one job, on their way; `job.result.images` says how far each is."""

    def __init__(self, tools: Tools, job: Job) -> None:
        self._tools = tools
        self._images = tools.images
        self._job = job
        self._teller = Teller(job, tools.settings.progress_log_interval_s)
        #: Images whose data is ours: whatever they hold, we may delete them.
        self._begun: set[str] = set()
        #: Images whose record is known to be there.
        self._present: set[str] = set()
        #: Images that an earlier agent had begun with: they may be there, or have arrived.
        self._taken_up: set[str] = set()

    def require_queued(self) -> None:
        """Raise JobCancelled or ImageRefused, before the guest is touched, if there is no use."""
        with _deletion_cancels():
            self._require_queued(self._all[0])

    def describe(self) -> None:
        """Write on the records what is known before the first byte; make those that are missing.

        Formats, the properties that Nova's driver writes at this point, and
        what the capture was like. Raises JobCancelled if an image is gone.
        """
        self._job.tell(TaskState.IMAGE_PENDING_UPLOAD)
        root = self._all[0]
        for image in self._all:
            with _deletion_cancels():
                if image is not root and not self._exists(image):
                    self._make_record(root, image)
                self._present.add(image.image_id)
                self._describe(image)

    def stream(self, exports: Sequence[Export]) -> None:
        """Read each export once, hash it and put it into its image.

        Raises JobCancelled if an image is deleted meanwhile, the job's own
        reason if it is stopped, and what `upload.upload` raises.
        """
        with self._stop_reason():
            layouts = [
                self.ask(functools.partial(self._layout, at, export))
                for at, export in enumerate(exports)
            ]
            self._teller.expect(sum(layout.length_bytes for layout in layouts))
            for at, (export, layout) in enumerate(zip(exports, layouts, strict=True)):
                self._stream(at, export, layout)
        self._teller.finish()

    def verify(self, exports: Sequence[Export]) -> None:
        """Raise VerifyFailed unless Glance holds exactly what was read.

        An image that differs is deleted and made once more, under another id,
        from the same frozen view: Glance takes no other data for the first.
        """
        for at, export in enumerate(exports):
            try:
                self._verify(at)
            except VerifyFailed as error:
                LOG.error("%s; trying once more from the same frozen view", error.message)
                self._replace_record(at)
                self._teller.goes_again(self._all[at].size_bytes or 0)
                with self._stop_reason():
                    layout = self.ask(functools.partial(self._layout, at, export))
                    self._stream(at, export, layout)
                self._verify(at)

    def publish(self) -> None:
        """Write the verified hash onto the images: whoever restores one can check again."""
        for at, image in enumerate(self._all):
            self._require_parent(image)
            with _deletion_cancels():
                self._update(image.image_id, {"stillframe_sha512": image.sha512})
            first_id = self._first_id(at)
            if first_id != image.image_id and image.image_id in self._taken_up:
                # The agent that made the second may not have come to removing the first.
                self.ask(functools.partial(self._images.delete, first_id))

    def present(self) -> list[str]:
        """Return the images that must be there: whoever deletes one of them means to cancel."""
        root, *others = [image.image_id for image in self._all]
        return [root, *(image_id for image_id in others if image_id in self._present)]

    def discard(self) -> None:
        """Delete the images that did not come to be; the API does it if Glance is away now.

        One that has data though none of it is ours is left alone: the cast may
        have named an image that was never this job's.
        """
        for image in self._all:
            try:
                discard = functools.partial(self._discard, image.image_id)
                upload.in_time(discard, _DISCARD_TIMEOUT_S)
            except ImageNotFound:
                continue
            except StillframeError as error:
                LOG.warning("Image %s could not be deleted: %s", image.image_id, error)

    def take_for_ours(self) -> None:
        """The upload had begun before the agent was interrupted."""
        self._begun.update(image.image_id for image in self._all)

    def take_up(self) -> None:
        """Go on with images that an earlier agent had begun with."""
        self.take_for_ours()
        self._taken_up.update(image.image_id for image in self._all)

    def ask(self, call: Callable[[], R]) -> R:
        """Return Glance's answer; a job that is stopped does not wait for it, and says why."""
        with self._stop_reason():
            return upload.unless_stopped(call, self._job.stopped)

    @property
    def _all(self) -> list[DiskImage]:
        return self._job.result.images

    def _make_record(self, root: DiskImage, image: DiskImage) -> None:
        properties = {
            "stillframe_disk": image.disk,
            "stillframe_root_image": root.image_id,
            "stillframe_job_id": self._job.entry.job_id,
        }
        suffix = f" ({image.disk})"
        self._make_like(root.image_id, image.image_id, suffix, properties)

    def _make_like(
        self, image_id: str, new_id: str, suffix: str, properties: Mapping[str, str]
    ) -> None:
        """Make a record like that of another image; one that comes too late goes again."""

        def make() -> None:
            self._images.duplicate_record(image_id, new_id, suffix, properties)
            job = self._job
            if job.stopped.is_set() and not isinstance(job.why_stopped, JobInterrupted):
                # Whoever gave up may have looked for it before it was there.
                self._images.delete(new_id)

        self.ask(make)

    def _exists(self, image: DiskImage) -> bool:
        if image.image_id not in self._taken_up:
            return False
        try:
            self._show(image.image_id)
        except ImageNotFound:
            return False
        return True

    def _require_queued(self, image: DiskImage) -> None:
        status = self._show(image.image_id).status
        if status != "queued":
            raise ImageRefused(f"the image is {status}; a snapshot needs one that is queued", 409)

    def _require_parent(self, image: DiskImage) -> None:
        """An increment without what it lies on is nothing."""
        if image.parent_image_id is None:
            return
        try:
            status = self._show(image.parent_image_id).status
        except ImageNotFound:
            status = "deleted"
        if status != "active":
            raise VerifyFailed(
                f"the image that this increment lies on is {status}; ask for the snapshot again"
            )

    def _describe(self, image: DiskImage) -> None:
        if image.image_id in self._taken_up and self._settled(image).status != "queued":
            return  # described before its data was sent
        changes: dict[str, object] = {
            "disk_format": self._format(image),
            "container_format": "bare",
            "image_location": "snapshot",
            "image_state": "available",
            "stillframe_job_id": self._job.entry.job_id,
            "stillframe_disk": image.disk,
            **_capture_properties(self._job.result.capture),
            **_increment_properties(image),
        }
        if len(self._all) > 1:
            changes["stillframe_disks"] = ",".join(one.disk for one in self._all)
        if self._job.request.instance.project_id:
            changes["owner_id"] = self._job.request.instance.project_id
        self._update(image.image_id, changes)

    def _format(self, image: DiskImage) -> str:
        # An increment that an earlier agent began stays one, whatever is configured now.
        return "qcow2" if image.parent_image_id else self._tools.settings.image_format

    def _layout(self, at: int, export: Export) -> Layout:
        image_format = self._format(self._all[at])
        # As in Nova, only qcow2 can be compressed.
        compression = self._tools.settings.compression if image_format == "qcow2" else None
        if compression:
            LOG.info("Compressing disk %s: first pass", export.target)
        with self._open(export) as source:
            return make_layout(
                Paced(source, self._throttles().lease(self._job.stopped)),
                disk_format=image_format,
                compression=compression,
                changes=export.changes,
                on_progress=self._teller.tell_first_pass,
            )

    def _throttles(self) -> Throttles:
        return Throttles(self._tools.throttle, self._job.throttle, self._job.courtesy)

    def _open(self, export: Export) -> NbdClient:
        contexts = [ALLOCATION_CONTEXT, *([export.changes] if export.changes else [])]
        return NbdClient(export.socket_path, export.name, contexts=contexts)

    def _stream(self, at: int, export: Export, layout: Layout) -> None:
        image = self._all[at]
        LOG.info(
            "Uploading image %s of disk %s: %d bytes of %s, %d read from the disk",
            image.image_id,
            image.disk,
            layout.length_bytes,
            layout.disk_format,
            layout.data_bytes,
        )
        pump = Pump(
            functools.partial(self._open, export),
            layout,
            throttle=self._throttles(),
            stopped=self._job.stopped,
            on_progress=self._teller.tell,
        )
        self._begun.add(image.image_id)
        with _deletion_cancels():
            digest = self._read_again(image, pump) or upload.upload(
                self._images,
                image.image_id,
                pump,
                retries=self._tools.settings.upload_retries,
                stopped=self._job.stopped,
            )
        self._teller.went_through(digest.size_bytes)
        self._note(at, size_bytes=digest.size_bytes, sha512=digest.sha512)

    def _settled(self, image: DiskImage) -> Image:
        stopped = self._job.stopped
        return self.ask(lambda: upload.settled(self._images, image.image_id, stopped))

    def _read_again(self, image: DiskImage, pump: Pump) -> Digest | None:
        """Return what the image must hold, if the bytes of an earlier agent had all arrived."""
        if image.image_id not in self._taken_up or self._settled(image).status != "active":
            return None
        LOG.info("Image %s had arrived; reading the disk again to compare", image.image_id)
        collections.deque(pump, maxlen=0)
        return pump.digest

    def _verify(self, at: int) -> None:
        image = self._all[at]
        digest = Digest(size_bytes=image.size_bytes or 0, sha512=image.sha512 or "")
        with _deletion_cancels():
            self.ask(lambda: upload.verify(self._images, image.image_id, digest))
        LOG.info("Verified: Glance holds the %d bytes that were read", digest.size_bytes)

    def _replace_record(self, at: int) -> None:
        old = self._all[at].image_id
        new = second_image_id(old)
        with _deletion_cancels():
            self._make_like(old, new, "", {})
            self._note(at, image_id=new)
            # Whoever finds the job interrupted must know of this one too.
            known = [image.to_wire() for image in self._all]
            self._tools.journal.note(self._job.entry.job_id, images=known)
            self._present.add(new)
            self._describe(self._all[at])
            if at == 0:
                for image in self._all[1:]:
                    self._update(image.image_id, {"stillframe_root_image": new})
            self.ask(functools.partial(self._images.delete, old))
        LOG.warning("Image %s takes the place of %s", new, old)

    def _first_id(self, at: int) -> str:
        """Return the id that an image has if its bytes come through as they were read."""
        root_id = self._job.request.image_id
        return disk_image_id(root_id, self._all[at].disk) if at else root_id

    def _show(self, image_id: str) -> Image:
        return self.ask(functools.partial(self._images.show, image_id))

    def _update(self, image_id: str, changes: dict[str, object]) -> None:
        self.ask(functools.partial(self._images.update, image_id, changes))

    def _discard(self, image_id: str) -> None:
        if image_id in self._begun or self._images.show(image_id).status == "queued":
            self._images.delete(image_id)

    def _note(self, at: int, **known: object) -> None:
        self._all[at] = dataclasses.replace(self._all[at], **known)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def _stop_reason(self) -> Iterator[None]:
        """Whatever a stopped job's work ends with, the reason is why it was stopped."""
        try:
            yield
        except Stopped:
            raise self._job.why_stopped from None
        except StillframeError:
            self._job.raise_if_stopped()
            raise


@contextlib.contextmanager
def _deletion_cancels() -> Iterator[None]:
    """Whoever deletes the image of a running job means to cancel it."""
    try:
        yield
    except ImageNotFound as error:
        raise JobCancelled("the image was deleted while the snapshot ran") from error


def _capture_properties(figures: CaptureFigures | None) -> dict[str, str]:
    if figures is None:
        return {}
    properties = {
        "stillframe_method": figures.method,
        "stillframe_consistency": figures.consistency,
        "stillframe_captured_at": clock.from_epoch(figures.captured_at).isoformat(),
    }
    for name in ("pause_ms", "freeze_ms"):
        value = getattr(figures, name)
        if value is not None:
            properties[f"stillframe_{name}"] = f"{value:.1f}"
    return properties


def _increment_properties(image: DiskImage) -> dict[str, object]:
    if image.parent_image_id is None:
        return {}
    return {
        # Whoever does not know of increments can make no disk of it: no list shall offer it.
        "os_hidden": True,
        "stillframe_parent": image.parent_image_id,
        "stillframe_chain_length": str(image.chain_length),
    }
