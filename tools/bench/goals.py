# SPDX-License-Identifier: Apache-2.0
"""What the figures are aimed at: bounds that they shall not exceed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from tools.bench.figures import Row

_WRITING = "writing"

Ratios = Mapping[str, Mapping[str, float | None]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A figure that shall not exceed a bound."""

    name: str
    figure: float | None
    bound: float

    @property
    def met(self) -> bool | None:
        """Whether it does not; None if it was not measured."""
        return None if self.figure is None else self.figure <= self.bound


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """A bound on a ratio of a case, or on a figure of one of its rows."""

    name: str
    key: str
    at_most: float
    #: The row's method; "" for a ratio of the case.
    method: str = ""
    #: Only where the guest writes.
    writing: bool = False


_BOUNDS = (
    _Bound(name="wall time / bare PUT", key="wall_vs_put", at_most=1.15),
    _Bound(name="wall time / Nova's way", key="wall_vs_nova_way", at_most=0.6),
    _Bound(name="bytes read / image byte", key="read_ratio", at_most=1.02, method="backup"),
    _Bound(
        name="bytes of temporary space beyond scratch",
        key="beyond_scratch_bytes",
        at_most=0,
        method="backup",
    ),
    _Bound(name="CPU / Nova's way", key="cpu_vs_nova_way", at_most=0.9),
    _Bound(name="CPU without sha512 / Nova's way", key="cpu_unhashed_vs_nova_way", at_most=0.5),
    _Bound(name="agent's RSS, MiB", key="rss_peak_mib", at_most=150, method="backup"),
    _Bound(name="vCPU stop / bare suspend+resume", key="pause_vs_bare", at_most=15),
    _Bound(name="vCPU stop / straightforward way", key="pause_vs_straightforward", at_most=0.5),
    _Bound(name="increment of 1 % / full image, bytes", key="increment_bytes", at_most=0.03),
    _Bound(
        name="guest's write p99 at the default limit / quiet",
        key="write_p99_ratio",
        at_most=4,
        method="backup-limited",
        writing=True,
    ),
    _Bound(
        name="rate / limit at 200 MB/s", key="rate_vs_limit", at_most=1.05, method="backup-limited"
    ),
    _Bound(name="rate / limit at 100 MB/s", key="rate_vs_limit", at_most=1.05, method="backup-100"),
)


def of_snapshots(rows: Sequence[Row], ratios_by_case: Ratios) -> Iterator[Goal]:
    """Yield the goals of each case that has a figure for them."""
    by_method = {(row["case"], row["method"]): row for row in rows}
    for case, ratios in ratios_by_case.items():
        for bound in _BOUNDS:
            if bound.writing and not case.endswith(_WRITING):
                continue
            source = by_method.get((case, bound.method), {}) if bound.method else ratios
            figure = source.get(bound.key)
            if figure is not None:
                yield Goal(name=f"{case}: {bound.name}", figure=figure, bound=bound.at_most)
