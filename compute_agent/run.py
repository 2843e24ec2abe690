# SPDX-License-Identifier: Apache-2.0
"""What one snapshot is of and how it is taken, decided before anything is done.

`begin` looks at the instance and the request and returns a Run, which the
steps of `snapshot` hand on to each other; `facts_of` is what the journal keeps
of it, for a recovery after a crash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from typing import Any

from common.errors import CaptureFailed
from common.messages import disk_image_id
from common.reports import DiskImage
from common.states import PowerState
from compute_agent.capture import choose, make
from compute_agent.capture.base import Capture, CaptureTarget, Export, Plan
from compute_agent.guest import description, metadata
from compute_agent.guest.domain import Guest
from compute_agent.increments import IncrementPlan
from compute_agent.jobs import Job
from compute_agent.pause import Freeze, Limits, Pause, freeze_policy
from compute_agent.publication import Publication
from compute_agent.tools import Tools

LOG = logging.getLogger(__name__)

_MIB = 1 << 20


@dataclasses.dataclass(slots=True, kw_only=True)
class Run:
    """One snapshot at work: what the steps hand on to each other."""

    job: Job
    tools: Tools
    guest: Guest
    plan: Plan
    capture: Capture
    targets: tuple[CaptureTarget, ...]
    left_out: dict[str, str]
    pause: Pause
    publication: Publication
    #: A checkpoint is made and kept, so that the next snapshot can be an increment.
    keeps_checkpoint: bool
    #: "filesystem" of a guest that had shut down in order, "crash" otherwise.
    consistency: str
    began: float = dataclasses.field(default_factory=time.monotonic)
    exports: tuple[Export, ...] = ()
    closing: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    def read_everything(self) -> None:
        """Make it a full snapshot: what an increment would be relative to is lost."""
        self.plan = dataclasses.replace(self.plan, since=None)
        self.capture = make.by_method(self.capture.method, self.plan)


def begin(tools: Tools, job: Job, guest: Guest) -> Run:
    """Look at the instance and decide; nothing is done to it yet.

    Raises NoUsableDisk, CaptureFailed (no method serves) or
    what stopped the job already.
    """
    job.raise_if_stopped()
    settings = tools.settings
    domain, state = guest.describe(), guest.power_state()
    wanted = job.request.options.disks or settings.disks
    disks, left_out = description.wanted_disks(domain, wanted)
    active = guest.is_active()
    circumstances = choose.Circumstances(
        active=active, disks=disks, host_backs_up=active and guest.can_be_backed_up(domain)
    )
    method = choose.choose(circumstances, settings.method)
    targets = tuple(
        CaptureTarget(disk=disk, capacity_bytes=guest.capacity_bytes(disk.target)) for disk in disks
    )
    publication = Publication(tools, job)
    increment = publication.ask(
        functools.partial(_plan_increment, tools, guest, targets, method, job)
    )
    plan = Plan(
        guest=guest,
        targets=targets,
        workspace=tools.directories.of_job(job.entry.job_id),
        scratch_reserve_percent=settings.scratch_reserve_percent,
        since=increment.chain.checkpoint if increment.chain else None,
        reservations=tools.reservations,
    )
    job.result.images = _images(job, targets, increment)
    _say_what_begins(job, targets, method, state)
    return Run(
        job=job,
        tools=tools,
        guest=guest,
        plan=plan,
        capture=make.by_method(method, plan),
        targets=targets,
        left_out=left_out,
        pause=_pause_of(tools, guest, job, metadata.read(domain).image_properties, state),
        publication=publication,
        keeps_checkpoint=settings.checkpoints and method == "backup" and _take_bitmaps(disks),
        consistency="filesystem" if guest.was_shut_down_in_order() else "crash",
    )


def _say_what_begins(
    job: Job, targets: tuple[CaptureTarget, ...], method: str, state: PowerState
) -> None:
    for target, image in zip(targets, job.result.images, strict=True):
        LOG.info(
            "Snapshot of disk %s (%d MiB) to image %s begins: method %s, guest %s%s",
            target.name,
            target.capacity_bytes // _MIB,
            image.image_id,
            method,
            state.name.lower(),
            f", what changed since {image.parent_image_id}" if image.parent_image_id else "",
        )


def facts_of(run: Run) -> dict[str, Any]:
    """Return what `recover` needs to know of a run."""
    figures = run.job.result.capture
    return {
        "method": run.capture.method,
        "suspends": run.pause.suspends,
        "freezes": run.pause.freeze is not Freeze.NEVER,
        "keeps_checkpoint": run.keeps_checkpoint,
        "targets": [
            {"disk": dataclasses.asdict(one.disk), "capacity_bytes": one.capacity_bytes}
            for one in run.targets
        ],
        "since": run.capture.since,
        "images": [image.to_wire() for image in run.job.result.images],
        "figures": figures.to_wire() if figures else None,
        "bandwidth_limit": run.job.bandwidth_limit,
    }


def targets_of(facts: dict[str, Any]) -> tuple[CaptureTarget, ...]:
    """Return the disks that a journalled run was of."""
    return tuple(
        CaptureTarget(disk=description.Disk(**one["disk"]), capacity_bytes=one["capacity_bytes"])
        for one in facts["targets"]
    )


def _pause_of(
    tools: Tools, guest: Guest, job: Job, image_properties: dict[str, str], state: PowerState
) -> Pause:
    settings, options = tools.settings, job.request.options
    runs = state is PowerState.RUNNING
    freeze = freeze_policy(options.freeze or settings.freeze, image_properties)
    if freeze is Freeze.REQUIRE and state is PowerState.PAUSED:
        raise CaptureFailed(
            "the instance is paused, so its file systems cannot be frozen; unpause it, or "
            "ask for a snapshot that needs no freeze"
        )
    return Pause(
        guest,
        tools.sentinel,
        suspends=runs and (options.pause or settings.pause) == "always",
        # A guest that does not run writes nothing, and its agent does not answer.
        freeze=freeze if runs else Freeze.NEVER,
        limits=Limits(freeze_timeout_s=settings.freeze_timeout_s),
    )


def _plan_increment(
    tools: Tools, guest: Guest, targets: tuple[CaptureTarget, ...], method: str, job: Job
) -> IncrementPlan:
    if not job.request.options.incremental:
        return IncrementPlan()
    return tools.increments.plan(
        guest, targets, method=method, image_format=tools.settings.image_format
    )


def _take_bitmaps(disks: tuple[description.Disk, ...]) -> bool:
    """Only a qcow2 file can keep a checkpoint's bitmap."""
    return all(disk.format == "qcow2" for disk in disks)


def _images(
    job: Job, targets: tuple[CaptureTarget, ...], increment: IncrementPlan
) -> list[DiskImage]:
    root = root_image(job, targets[0].name)
    images = [root]
    for target in targets[1:]:
        # Known beforehand, so that whoever finds one after a crash knows whose it is.
        image_id = disk_image_id(root.image_id, target.name)
        images.append(DiskImage(image_id=image_id, disk=target.name))
    if increment.chain is None:
        return [dataclasses.replace(image, why_full=increment.why_full) for image in images]
    return [
        dataclasses.replace(
            image,
            parent_image_id=increment.chain.links[image.disk].image_id,
            chain_length=increment.chain.length + 1,
        )
        for image in images
    ]


def root_image(job: Job, disk: str) -> DiskImage:
    """Return the image that the request names, as that of a disk."""
    return DiskImage(image_id=job.request.image_id, disk=disk)
