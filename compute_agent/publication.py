# SPDX-License-Identifier: Apache-2.0
"""From the frozen view to an image that can be trusted: describe, stream, verify, publish.

The steps of `snapshot` that face Glance. The bytes go through once; what is
only known when the whole has been verified is written onto the image last.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterator

from common import clock
from common.errors import JobCancelled, StillframeError
from common.glance import ImageNotFound, ImageRefused, ImageService
from common.messages import CaptureFigures
from common.states import TaskState
from compute_agent import upload
from compute_agent.capture.base import Export
from compute_agent.disks.nbd import NbdClient
from compute_agent.jobs import Job
from compute_agent.stream.pump import Digest, Layout, Progress, Pump, Stopped
from compute_agent.stream.qcow2 import Qcow2Layout
from compute_agent.stream.raw import RawLayout
from compute_agent.tools import Tools

LOG = logging.getLogger(__name__)

_MB = 10**6
_LAYOUTS: dict[str, type[Qcow2Layout] | type[RawLayout]] = {
    "qcow2": Qcow2Layout,
    "raw": RawLayout,
}


def describe(images: ImageService, job: Job, disk_format: str) -> None:
    """Write on the record what is known before the first byte.

    Formats, the properties that Nova's driver writes at this point, and what
    the capture was like. Raises JobCancelled if the image is gone.
    """
    job.tell(TaskState.IMAGE_PENDING_UPLOAD)
    with _deletion_cancels():
        status = images.show(job.request.image_id).status
    if status != "queued":
        raise ImageRefused(f"the image is {status}; a snapshot needs one that is queued", 409)
    changes = {
        "disk_format": disk_format,
        "container_format": "bare",
        "image_location": "snapshot",
        "image_state": "available",
        "stillframe_job_id": job.entry.job_id,
        **_capture_properties(job.result.capture),
    }
    if job.request.instance.project_id:
        changes["owner_id"] = job.request.instance.project_id
    with _deletion_cancels():
        images.update(job.request.image_id, changes)


def stream(tools: Tools, job: Job, export: Export) -> None:
    """Read the export once, hash it and put it into the image.

    Raises JobCancelled if the image is deleted meanwhile, the job's own reason
    if it is stopped, and what `upload.upload` raises.
    """
    open_source = functools.partial(NbdClient, export.socket_path, export.name)
    with open_source() as source:
        layout: Layout = _LAYOUTS[tools.settings.image_format].of(source)
    LOG.info(
        "Uploading image %s: %d bytes of %s, %d read from the disk",
        job.request.image_id,
        layout.length_bytes,
        layout.disk_format,
        layout.data_bytes,
    )
    teller = _Teller(job, tools.settings.progress_log_interval_s)
    pump = Pump(
        open_source,
        layout,
        throttle=tools.throttle,
        stopped=job.stopped,
        on_progress=teller.tell,
    )
    with _deletion_cancels():
        try:
            digest = upload.upload(
                tools.images,
                job.request.image_id,
                pump,
                retries=tools.settings.upload_retries,
                stopped=job.stopped,
            )
        except Stopped:
            raise job.why_stopped from None
    job.result.size_bytes, job.result.sha512 = digest.size_bytes, digest.sha512
    teller.finish(digest)


def verify(images: ImageService, job: Job) -> None:
    """Raise VerifyFailed unless Glance holds exactly what was read."""
    with _deletion_cancels():
        upload.verify(images, job.request.image_id, _digest(job))
    LOG.info("Verified: Glance holds the %d bytes that were read", job.result.size_bytes)


def publish(images: ImageService, job: Job) -> None:
    """Write the verified hash onto the image: whoever restores it can check again."""
    with _deletion_cancels():
        images.update(job.request.image_id, {"stillframe_sha512": job.result.sha512})


def discard(images: ImageService, job: Job, *, began: bool) -> None:
    """Delete an image that did not come to be; the API does it if Glance is away now.

    `began` says that the upload is ours. Otherwise an `active` image is left
    alone: the cast may have named one that was never this job's.
    """
    try:
        if began or images.show(job.request.image_id).status != "active":
            images.delete(job.request.image_id)
    except ImageNotFound:
        return
    except StillframeError as error:
        LOG.warning("Image %s could not be deleted: %s", job.request.image_id, error)


class _Teller:
    """Passes a stream's progress on: to the reports each time, to the log now and then."""

    def __init__(self, job: Job, log_interval_s: float) -> None:
        self._job = job
        self._log_interval_s = log_interval_s
        self._began = self._logged = time.monotonic()

    def tell(self, progress: Progress) -> None:
        """Take the progress of the stream."""
        self._job.tell(
            TaskState.IMAGE_UPLOADING,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            rate_bytes_s=progress.rate_bytes_s,
            eta_s=progress.eta_s,
        )
        if time.monotonic() - self._logged >= self._log_interval_s:
            self._logged = time.monotonic()
            LOG.info(
                "Uploading: %d%%, %d of %d bytes, %.0f MB/s, %.0f s left",
                progress.percent,
                progress.bytes_done,
                progress.bytes_total,
                progress.rate_bytes_s / _MB,
                progress.eta_s or 0.0,
            )

    def finish(self, digest: Digest) -> None:
        """Say what the whole was like."""
        took_s = max(time.monotonic() - self._began, 1e-6)
        rate = digest.size_bytes / took_s / _MB
        LOG.info("Uploaded %d bytes in %.1f s, %.0f MB/s", digest.size_bytes, took_s, rate)


@contextlib.contextmanager
def _deletion_cancels() -> Iterator[None]:
    """Whoever deletes the image of a running job means to cancel it."""
    try:
        yield
    except ImageNotFound as error:
        raise JobCancelled("the image was deleted while the snapshot ran") from error


def _digest(job: Job) -> Digest:
    return Digest(size_bytes=job.result.size_bytes or 0, sha512=job.result.sha512 or "")


def _capture_properties(figures: CaptureFigures | None) -> dict[str, str]:
    if figures is None:
        return {}
    properties = {
        "stillframe_method": figures.method,
        "stillframe_consistency": figures.consistency,
        "stillframe_captured_at": clock.from_epoch(figures.captured_at).isoformat(),
    }
    if figures.pause_ms is not None:
        properties["stillframe_pause_ms"] = f"{figures.pause_ms:.1f}"
    return properties
