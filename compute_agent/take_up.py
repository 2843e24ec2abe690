# SPDX-License-Identifier: Apache-2.0
"""Goes on with a snapshot that the agent's end interrupted, where its frozen view still stands.

QEMU keeps a backup job, and a guest its overlay, though the agent dies; a disk
of a guest that is off is what it was unless somebody has written to it since.
Then nothing is lost but the upload, which begins again at byte 0. Called by
`recovery` (does it stand?) and `snapshot` (go on).
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from typing import Any

from common.errors import StillframeError
from common.reports import CaptureFigures, DiskImage
from compute_agent.capture import make
from compute_agent.capture.base import CaptureTarget, Plan
from compute_agent.guest.domain import Guest
from compute_agent.jobs import Job
from compute_agent.journal import Entry
from compute_agent.pause import Freeze, Limits, Pause
from compute_agent.publication import Publication
from compute_agent.run import Run, targets_of
from compute_agent.tools import Tools

LOG = logging.getLogger(__name__)

#: In these steps the instant is fixed, and the guest goes on.
_STEPS = frozenset({"stream", "verify", "publish"})


def stands(tools: Tools, entry: Entry) -> bool:
    """Tell whether the frozen view of an interrupted job can still be read."""
    if entry.step not in _STEPS or not entry.facts.get("figures"):
        return False
    try:
        guest = tools.hypervisor.guest(entry.request.instance.uuid)
        plan = _plan(tools, entry, guest)
        return _STANDS[entry.facts["method"]](guest, plan, entry.facts)
    except StillframeError as error:
        LOG.info("The frozen view of job %s does not stand any more: %s", entry.job_id, error)
        return False


def take_up(tools: Tools, job: Job, guest: Guest) -> Run:
    """Return the run of an interrupted job, its view standing, as it was before its upload."""
    facts = job.entry.facts
    plan = _plan(tools, job.entry, guest)
    job.result.images = [DiskImage.from_wire(image) for image in facts["images"]]
    job.result.capture = CaptureFigures.from_wire(facts["figures"])
    publication = Publication(tools, job)
    publication.take_up()
    LOG.info(
        "Going on with the snapshot to image %s: its frozen view outlived the agent",
        job.result.images[0].image_id,
    )
    capture = make.by_method(facts["method"], plan)
    capture.hold_room()
    return Run(
        job=job,
        tools=tools,
        guest=guest,
        plan=plan,
        capture=capture,
        targets=plan.targets,
        left_out=job.result.capture.disks_left_out,
        pause=Pause(
            guest,
            tools.sentinel,
            suspends=False,
            freeze=Freeze.NEVER,
            limits=Limits(freeze_timeout_s=tools.settings.freeze_timeout_s),
        ),
        publication=publication,
        keeps_checkpoint=facts["keeps_checkpoint"],
        consistency=job.result.capture.consistency,
    )


def _plan(tools: Tools, entry: Entry, guest: Guest) -> Plan:
    return Plan(
        guest=guest,
        targets=targets_of(entry.facts),
        workspace=tools.directories.of_job(entry.job_id),
        scratch_reserve_percent=tools.settings.scratch_reserve_percent,
        since=entry.facts.get("since"),
        reservations=tools.reservations,
    )


def _backup_stands(guest: Guest, plan: Plan, _facts: dict[str, Any]) -> bool:
    description = guest.backup_description()
    return description is not None and str(plan.workspace.socket_path()) in description


def _overlay_stands(guest: Guest, plan: Plan, _facts: dict[str, Any]) -> bool:
    capture = make.by_method("overlay", plan)
    overlays = {str(path) for path in capture.growing()}
    return {guest.source_path(target.name) for target in plan.targets} == overlays


def _offline_stands(guest: Guest, plan: Plan, facts: dict[str, Any]) -> bool:
    if guest.is_active():
        return False
    captured_at = float(facts["figures"]["captured_at"])
    return all(_is_unwritten(target, captured_at) for target in plan.targets)


def _is_unwritten(target: CaptureTarget, since: float) -> bool:
    """Only a file tells when it was written to last."""
    status = os.stat(target.path)
    return stat.S_ISREG(status.st_mode) and status.st_mtime < since


_STANDS: dict[str, Callable[[Guest, Plan, dict[str, Any]], bool]] = {
    "backup": _backup_stands,
    "overlay": _overlay_stands,
    "offline": _offline_stands,
}
