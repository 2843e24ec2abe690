# SPDX-License-Identifier: Apache-2.0
"""What one rebuild has in hand, decided before anything is done, and what the journal keeps.

`begin` looks at the instance and refuses what cannot be rebuilt; `take_up` makes the
same of the journal's facts. The steps of `rebuild` hand a Run on to each other.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import stat
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import qemu_img
from common.errors import JobFailed
from common.messages import RebuildRequest
from compute_agent.guest import description, metadata
from compute_agent.guest.description import Disk
from compute_agent.guest.domain import Guest
from compute_agent.guest.metadata import MetadataChange
from compute_agent.jobs import Job
from compute_agent.proofs import ProofSettings
from compute_agent.restore.model import ProvenImage
from compute_agent.swap import Swap
from compute_agent.tools import Tools

LOG = logging.getLogger(__name__)

_MIB, _GIB = 1 << 20, 1 << 30
#: What of an image's properties snapshots of the instance inherit, as from Nova's metadata.
_INHERITED_PREFIXES = ("hw_", "os_", "img_", "trait:")
_INHERITED = frozenset({"architecture", "hypervisor_type", "vm_mode", "kernel_id", "ramdisk_id"})
_NOT_INHERITED_PREFIXES = ("os_glance", "os_hash_", "os_hidden", "img_signature")
_SYNONYMS = {"amd64": "x86_64", "i386": "i686", "i486": "i686", "i586": "i686"}


class RebuildRefused(JobFailed):
    """The instance, as its host has it (by now), cannot be rebuilt; it has its disk as it was."""

    code = "rebuild_refused"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RebuildSettings:
    """The options that a rebuild obeys, as plain values."""

    #: How long a guest may take to shut down by itself.
    shutdown_timeout_s: float
    proof: ProofSettings


@dataclasses.dataclass(slots=True, kw_only=True)
class Run:
    """One rebuild at work."""

    job: Job
    tools: Tools
    settings: RebuildSettings
    guest: Guest
    image_id: str
    disk: Disk
    capacity_bytes: int
    #: The largest disk that an image may hold: the instance's own, or its flavor's.
    most_bytes: int
    was_running: bool
    #: The guest is to run in the end.
    starts: bool
    swap: Swap
    proven: ProvenImage | None = None
    metadata: MetadataChange | None = None
    #: When the guest began to go off (time.monotonic()); 0: it has not.
    down_at: float = 0.0


def begin(tools: Tools, settings: RebuildSettings, job: Job, guest: Guest) -> Run:
    """Look at the instance and decide; nothing is done to it yet.

    Raises NoUsableDisk, RebuildRefused (the message says why), QemuImgError,
    or what stopped the job already.
    """
    job.raise_if_stopped()
    request = _request(job)
    domain, was_running = guest.definition(), guest.is_active()
    disk = description.root_disk(domain)
    _require_rebuildable(guest, domain, disk)
    # Links to it stay links: the disk is where they lead.
    path = Path(os.path.realpath(disk.path or ""))
    below = qemu_img.info(path, disk.format).backing_file
    capacity = guest.capacity_bytes(disk.target)
    flavor = metadata.read(domain).flavor
    run = Run(
        job=job,
        tools=tools,
        settings=settings,
        guest=guest,
        image_id=request.image_id,
        disk=disk,
        capacity_bytes=capacity,
        most_bytes=max(capacity, flavor.disk_gib * _GIB if flavor else 0),
        was_running=was_running,
        starts=was_running if request.start is None else request.start,
        swap=Swap.of(path, job.entry.job_id, below=Path(below) if below else None),
    )
    LOG.info(
        "Rebuild of disk %s (%s%s, %d MiB) of image %s begins; the guest is %s",
        disk.target,
        disk.format,
        " on a base" if below else "",
        capacity // _MIB,
        run.image_id,
        "on" if was_running else "off",
    )
    return run


def require_unchanged(run: Run) -> None:
    """Raise RebuildRefused unless the instance may be rebuilt still, and its disk is the same.

    Since `begin` somebody may have laid an overlay on it, moved it or suspended the guest
    to disk. A new disk below what lies on the old one would be neither.
    """
    domain = run.guest.definition()
    disk = description.root_disk(domain)
    _require_rebuildable(run.guest, domain, disk)
    is_same = (disk.target, disk.format) == (run.disk.target, run.disk.format)
    if not is_same or os.path.realpath(disk.path or "") != str(run.swap.path):
        raise RebuildRefused("the instance got another root disk meanwhile; ask again")


def take_up(tools: Tools, settings: RebuildSettings, job: Job, guest: Guest) -> Run:
    """Return the run of an interrupted job, its new disk in its place, as it was."""
    facts = job.entry.facts
    change = facts.get("metadata")
    return Run(
        job=job,
        tools=tools,
        settings=settings,
        guest=guest,
        image_id=_request(job).image_id,
        disk=Disk(**facts["disk"]),
        capacity_bytes=facts["capacity_bytes"],
        most_bytes=facts["capacity_bytes"],
        was_running=facts["was_running"],
        starts=facts["starts"],
        swap=Swap.from_facts(facts["swap"]),
        metadata=MetadataChange(**change) if change else None,
    )


def facts_of(run: Run) -> dict[str, Any]:
    """Return what going on, or going back, needs to know of a run."""
    return {
        "disk": dataclasses.asdict(run.disk),
        "capacity_bytes": run.capacity_bytes,
        "was_running": run.was_running,
        "starts": run.starts,
        "swap": run.swap.facts(),
        "metadata": dataclasses.asdict(run.metadata) if run.metadata else None,
        "shutdown_timeout_s": run.settings.shutdown_timeout_s,
    }


def inherited(properties: Mapping[str, str]) -> dict[str, str]:
    """Return what of an image's properties the instance's metadata keeps."""
    return {
        name: value
        for name, value in properties.items()
        if (name in _INHERITED or name.startswith(_INHERITED_PREFIXES))
        and not name.startswith(_NOT_INHERITED_PREFIXES)
    }


def require_architecture(domain: ET.Element, properties: Mapping[str, str]) -> None:
    """Raise RebuildRefused for an image that says it is for another kind of processor."""
    named = properties.get("hw_architecture") or properties.get("architecture")
    machine = domain.find("os/type")
    own = machine.get("arch") if machine is not None else None
    if named and own and _SYNONYMS.get(named, named) != own:
        raise RebuildRefused(f"the image is for architecture {named}, the instance is of {own}")


def _require_rebuildable(guest: Guest, domain: ET.Element, disk: Disk) -> None:
    reason = next((reason for holds, reason in _REFUSALS if holds(guest, domain, disk)), None)
    if reason is not None:
        raise RebuildRefused(f"the instance cannot be rebuilt: {reason}")


def _is_no_file(_guest: Guest, _domain: ET.Element, disk: Disk) -> bool:
    if disk.source_type != "file" or disk.path is None:
        return True
    try:
        return not stat.S_ISREG(os.stat(disk.path).st_mode)
    except OSError:
        return True


def _names_what_is_below(_guest: Guest, domain: ET.Element, disk: Disk) -> bool:
    return _has(domain, disk, "backingStore/source")


def _has(domain: ET.Element, disk: Disk, what: str) -> bool:
    """Tell whether a disk's element has such a child."""
    found = domain.find(f"devices/disk/target[@dev='{disk.target}']/..")
    return found is not None and found.find(what) is not None


def _is_called_too_long(_guest: Guest, _domain: ET.Element, disk: Disk) -> bool:
    return not Swap.has_names(Path(os.path.realpath(disk.path or "")))


#: What keeps an instance from being rebuilt, each with the words for it.
_REFUSALS = (
    (
        lambda guest, _domain, _disk: not guest.is_persistent(),
        "its host would forget it when it is switched off; have it defined there",
    ),
    (
        lambda guest, _domain, _disk: guest.has_saved_memory(),
        "it is suspended to disk; start it first, or have its saved memory removed",
    ),
    (_is_no_file, "its root disk is no file of its host"),
    (
        _is_called_too_long,
        "the name of its root disk leaves no room for another beside it; give it a shorter one",
    ),
    (
        lambda guest, _domain, disk: (
            guest.is_active() and guest.source_path(disk.target) != disk.path
        ),
        "it runs from another disk than its definition names; switch it off and on first",
    ),
    (
        _names_what_is_below,
        "its definition names the files below its root disk; have that part removed",
    ),
)


def _request(job: Job) -> RebuildRequest:
    request = job.entry.request
    if not isinstance(request, RebuildRequest):
        raise TypeError(f"job {job.entry.job_id} is no rebuild")
    return request
