# SPDX-License-Identifier: Apache-2.0
"""Which capture method serves a guest: a table, read from the top.

`[capture] method` may force one; a forced method that cannot serve the guest
is refused with the same reason that the choice would have passed it over for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from common.errors import CaptureFailed
from compute_agent.guest.description import Disk


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a choice depends on."""

    active: bool
    disks: tuple[Disk, ...]
    #: libvirt says that it can run backup jobs with the guest's QEMU.
    host_backs_up: bool = True

    @property
    def has_iothread(self) -> bool:
        """Any of the disks is served by an iothread of its own."""
        return any(disk.has_iothread for disk in self.disks)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`method` serves unless one of `unless` holds; its sentence says why not."""

    method: str
    unless: tuple[tuple[Callable[[Circumstances], bool], str], ...]

    def objection(self, circumstances: Circumstances) -> str | None:
        """Return why the method cannot serve, or None if it can."""
        return next((why for holds, why in self.unless if holds(circumstances)), None)


RULES: tuple[Rule, ...] = (
    Rule(
        method="offline",
        unless=((lambda it: it.active, "it is for instances that are shut off"),),
    ),
    Rule(
        method="backup",
        unless=(
            (lambda it: not it.active, "it is for instances that run"),
            (lambda it: not it.host_backs_up, "the instance's QEMU or libvirt is too old for it"),
            # QEMU up to 7.2 (and, unproven, later ones) aborts, and the guest
            # with it, if the reader of such a disk's export dies.
            (lambda it: it.has_iothread, "it is unsafe for a disk with an iothread"),
        ),
    ),
    Rule(
        method="overlay",
        unless=((lambda it: not it.active, "it is for instances that run"),),
    ),
)


def choose(circumstances: Circumstances, forced: str = "auto") -> str:
    """Return the method's name; raise CaptureFailed with the reasons if none serves."""
    objections = {}
    for rule in RULES:
        if forced not in ("auto", rule.method):
            continue
        why = rule.objection(circumstances)
        if why is None:
            return rule.method
        objections[rule.method] = why
    reasons = "; ".join(f"{method}: {why}" for method, why in objections.items())
    raise CaptureFailed(f"no capture method serves this instance ({reasons})")
