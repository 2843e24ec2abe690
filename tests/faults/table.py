# SPDX-License-Identifier: Apache-2.0
"""What came of a run of faults, as a table for docs/faults.md."""

from __future__ import annotations

import collections
import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What came of one fault; times in seconds."""

    fault: str
    method: str
    outcome: str
    reason: str
    recovered_s: float


def table(told: list[Told], seed: int) -> str:
    """Return what came of a run, by fault and method, as Markdown."""
    rows: dict[tuple[str, str], list[Told]] = collections.defaultdict(list)
    for one in told:
        rows[one.fault, one.method].append(one)
    lines = [
        f"{len(told)} faults, seed {seed}.\n",
        "| fault | method | times | whole | gone, and why | until the end, longest, s |",
        "|---|---|---|---|---|---|",
    ]
    for (fault, method), group in sorted(rows.items()):
        whole = sum(one.outcome == "done" for one in group)
        gone = collections.Counter(one.reason for one in group if one.outcome != "done")
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(gone.items())) or "–"
        longest = max(one.recovered_s for one in group)
        lines.append(f"| {fault} | {method} | {len(group)} | {whole} | {why} | {longest:.0f} |")
    return "\n".join(lines) + "\n"
