# SPDX-License-Identifier: Apache-2.0
"""What came of a run of faults, as a table for docs/faults.md."""

from __future__ import annotations

import collections
import dataclasses

from tests.faults.faults import METHODS

_AGENT = "a temporary file or a mirror job for ever; image `queued`; a cold one: guest off"
#: What Nova leaves behind of a snapshot, by fault; only what was measured on the same platform.
#: A dead broker was measured before the request alone, and a kill of the agent on running guests.
NOVA: dict[str | tuple[str, str], str] = {
    ("agent", "backup"): _AGENT,
    ("agent", "overlay"): _AGENT,
    "agent, SIGTERM": "waits up to 60 s; cut off: a temporary file, image `queued`",
    "broker": "before the request: POST hangs over 120 s, task_state stuck until it is back",
    "glance": "image `saving` for ever, over 1,000 ERROR lines",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What came of one fault; times in seconds."""

    fault: str
    method: str
    outcome: str
    reason: str
    recovered_s: float
    #: Something was hit, and the job was not over.
    counts: bool
    #: Where the job was: the step that its agent had told of last.
    step: str = ""


def table(told: list[Told], seed: int) -> str:
    """Return what came of a run, by fault and method, as Markdown."""
    rows: dict[tuple[str, str], list[Told]] = collections.defaultdict(list)
    counted = [one for one in told if one.counts]
    vain = len(told) - len(counted)
    for one in counted:
        rows[one.fault, one.method].append(one)
    lines = [
        f"{len(counted)} faults, seed {seed}; {vain} more hit nothing, or a job that was over: "
        "all held, none is counted.\n",
        "| fault | method | times | whole | gone, and why | until the end, longest, s | Nova |",
        "|---|---|---|---|---|---|---|",
    ]
    for (fault, method), group in sorted(rows.items()):
        whole = sum(one.outcome == "done" for one in group)
        gone = collections.Counter(one.reason for one in group if one.outcome != "done")
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(gone.items())) or "–"
        longest = max(one.recovered_s for one in group)
        nova = NOVA.get((fault, method), NOVA.get(fault, "–") if method in METHODS else "–")
        shown = (fault, method, len(group), whole, why, f"{longest:.0f}", nova)
        lines.append("| " + " | ".join(map(str, shown)) + " |")
    return "\n".join(lines) + "\n"
