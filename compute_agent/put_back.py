# SPDX-License-Identifier: Apache-2.0
"""Ends a rebuild that cannot go on: the old disk in its place, the guest as it was.

By what the journal says of the job, so `rebuild` does the same after an error that
`recovery` and `release` do after a crash. One whose new disk was proven is settled
instead: from then on the old disk is what there is too much of.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from common.errors import InstanceNotFound
from common.states import PowerState
from compute_agent.guest.domain import Guest
from compute_agent.guest.metadata import MetadataChange
from compute_agent.increments import Increments
from compute_agent.swap import Swap

LOG = logging.getLogger(__name__)

#: The step from which on the new disk stays.
PROVEN = "release"
#: Before these steps nobody has touched the guest.
UNTOUCHED = frozenset({"fetch", "build"})


def end(
    step: str | None,
    facts: dict[str, Any],
    guest: Guest,
    increments: Increments,
    *,
    patience_s: float | None = None,
) -> None:
    """Settle a rebuild whose disk was proven, undo any other; safe to repeat.

    A guest whose button was pressed has `patience_s` (None: as the job's own option
    said) to go off before its power is cut. Raises what libvirt refuses.
    """
    if step == PROVEN:
        settle(Swap.from_facts(facts["swap"]), guest, increments)
        return
    swap = Swap.from_facts(facts["swap"])
    if step in UNTOUCHED:
        swap.put_back()
        return
    if swap.room.exists():  # else all but the start was done before a crash
        try:
            _bring_back(swap, step, facts, guest, patience_s)
        except InstanceNotFound:
            give_up(step, facts)
            return
    if facts["was_running"]:
        guest.start()
    LOG.info(
        "The old disk is in its place, and the guest %s",
        "runs from it" if facts["was_running"] else "is off, as it was",
    )


def _bring_back(
    swap: Swap, step: str | None, facts: dict[str, Any], guest: Guest, patience_s: float | None
) -> None:
    """Switch the guest off, and give it its old disk and definition."""
    # One that somebody started right before the swap runs from the old disk, too.
    is_on_new = swap.is_swapped() and step != "swap"
    if not is_on_new and guest.power_state() is PowerState.RUNNING:
        # It may be on its way down already.
        timeout_s = facts["shutdown_timeout_s"] if patience_s is None else patience_s
        guest.shut_down(timeout_s, threading.Event())
    guest.cut_power()
    change = facts.get("metadata")
    if change is not None:
        guest.write_metadata(MetadataChange(**change), back=True)
    swap.put_back()


def give_up(step: str | None, facts: dict[str, Any]) -> None:
    """Of a guest that this host has no more: one whole disk stays, the old one if in doubt."""
    swap = Swap.from_facts(facts["swap"])
    LOG.info("The instance is gone, and what the rebuild made beside its disk")
    if step == PROVEN:
        swap.settle()
    else:
        swap.put_back()


def settle(swap: Swap, guest: Guest, increments: Increments) -> None:
    """Give up the old disk, and the record of what has changed on it."""
    increments.forget(guest)
    swap.settle()
