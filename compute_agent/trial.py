# SPDX-License-Identifier: Apache-2.0
"""Tries an image out: boots it where nobody sees it, and writes on it whether it does.

The instance has one processor, little memory, no network and a slow disk, belongs to
nobody and lives as long as the job. It has booted when its serial console says so or
its guest agent is there.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Callable

from common import clock
from common.errors import InstanceNotFound, JobFailed, StillframeError, VerifyFailed
from common.flatten import BrokenChain, UnsafeImage
from common.messages import VerifyRequest
from common.states import TaskState
from compute_agent.guest.domain import Guest
from compute_agent.guest.template import Definition, domain_xml, throw_away_metadata
from compute_agent.jobs import Job
from compute_agent.places import Place, Places
from compute_agent.spawn import build_disk, prove, require_new, undo_interrupted, undo_patiently
from compute_agent.tools import Tools

LOG = logging.getLogger(__name__)

VERIFIED, VERIFIED_AT = "stillframe_verified", "stillframe_verified_at"

_LOOK_S = 0.5
_DISK_BYTES_S = 200 * 10**6
#: So much of the end of what a guest said is looked at.
_TAIL_BYTES = 64 << 10


class ImageDoesNotBoot(JobFailed):
    """An image was tried out, and its guest did not come up in time."""

    code = "image_does_not_boot"


#: What proves an image to be bad, rather than that it could not be tried.
_PROOFS: tuple[type[StillframeError], ...] = (
    ImageDoesNotBoot,
    UnsafeImage,
    BrokenChain,
    VerifyFailed,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrialSettings:
    """The options of [spawn] that a trial obeys, as plain values."""

    memory_mib: int
    timeout_s: float
    #: What the guest says when it has booted.
    marker: re.Pattern[str]


class Trials:
    """Tries images out, with one host's tools."""

    def __init__(
        self, tools: Tools, places: Places, virt_type: Callable[[], str], settings: TrialSettings
    ) -> None:
        self._tools = tools
        self._places = places
        self._virt_type = virt_type
        self._settings = settings

    def verify(self, job: Job) -> None:
        """Try the image that `job` names, and write on it what came of that.

        Raises ImageDoesNotBoot or what else is wrong with it, after it was written there,
        and what kept it from being tried.
        """
        request = job.entry.request
        if not isinstance(request, VerifyRequest):
            raise TypeError(f"job {job.entry.job_id} tries no image")
        LOG.info("Trying out image %s", request.image_id)
        try:
            self._try(job, request)
        except _PROOFS as error:
            LOG.warning("Image %s is no good: %s", request.image_id, error)
            self._write(request.image_id, "no")
            raise
        self._write(request.image_id, "yes")

    def recover(self, job: Job) -> bool:
        """Remove what a crash left of a trial; it has no result."""
        if job.entry.step is not None:  # else what has this id here is not the job's
            undo_interrupted(self._tools, self._places, job)
        return False

    def _try(self, job: Job, request: VerifyRequest) -> None:
        require_new(self._tools, self._places, request.instance.uuid)
        place, is_ours = self._places.of(request.instance.uuid), False
        try:
            self._enter(job, "fetch", TaskState.BLOCK_DEVICE_MAPPING)
            place.make()
            is_ours = True
            proven = prove(self._tools, job, place, request.image_id, 0)
            self._enter(job, "build", TaskState.BLOCK_DEVICE_MAPPING)
            build_disk(self._tools, job, place, proven, 0)
            self._enter(job, "boot", TaskState.SPAWNING)
            self._boot(job, place, proven.image.properties)
        finally:
            undo_patiently(self._tools, place, is_ours=is_ours)

    def _boot(self, job: Job, place: Place, properties: dict[str, str]) -> None:
        definition = Definition(
            uuid=job.instance.uuid,
            domain_name=f"verify-{job.instance.uuid[:8]}",
            virt_type=self._virt_type(),
            vcpus=1,
            memory_mib=self._settings.memory_mib,
            disk=place.disk,
            disk_format="qcow2",
            console=place.console,
            image_properties=properties,
            metadata=throw_away_metadata(),
            disk_bytes_s=_DISK_BYTES_S,
        )
        guest = self._tools.hypervisor.define(domain_xml(definition))
        began = time.monotonic()
        guest.start()
        while time.monotonic() - began < self._settings.timeout_s:
            if self._is_up(guest, place):
                LOG.info("The image boots, in %.1f s", time.monotonic() - began)
                return
            job.stopped.wait(_LOOK_S)
            job.raise_if_stopped()
        raise ImageDoesNotBoot(
            f"the image did not boot within {self._settings.timeout_s:.0f} s: its guest did not "
            "say so on its serial console, and no guest agent answered"
        )

    def _is_up(self, guest: Guest, place: Place) -> bool:
        try:
            if not guest.is_active():
                raise ImageDoesNotBoot("the image's guest switched itself off while it booted")
            return guest.has_agent() or self._has_said_so(place)
        except InstanceNotFound as error:
            raise JobFailed("the instance that the image was tried in was removed") from error

    def _has_said_so(self, place: Place) -> bool:
        with place.console.open("rb") as console:
            size = console.seek(0, 2)
            console.seek(max(0, size - _TAIL_BYTES))
            text = console.read().decode(errors="replace")
        return any(self._settings.marker.search(line) for line in text.splitlines())

    def _enter(self, job: Job, name: str, task_state: TaskState) -> None:
        job.raise_if_stopped()
        self._tools.journal.begin_step(job.entry.job_id, name, {})
        job.begin_step(name)
        job.tell(task_state)

    def _write(self, image_id: str, verified: str) -> None:
        at = clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        self._tools.images.update(image_id, {VERIFIED: verified, VERIFIED_AT: at})
