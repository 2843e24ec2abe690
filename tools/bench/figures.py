# SPDX-License-Identifier: Apache-2.0
"""From samples to rows and ratios; pure, so that the arithmetic can be tested.

A sample is one run of one method. A row sums up the samples of a method in a
case, mostly by their median. A ratio compares within one round, then takes the
median over the rounds: the machine's speed drifts, a round is short.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]

_MIB = 2**20
_INCREMENT = "increment"
_NOVA_WAYS = ("nova-live", "nova-cold")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one run of a method cost; None where a figure has no meaning."""

    case: str
    #: Both are known to whoever runs the rounds.
    method: str = ""
    round: int = 0
    wall_s: float | None = None
    image_bytes: int | None = None
    #: Mean of the bare PUTs before and after, scaled to `image_bytes`.
    put_s: float | None = None
    #: vCPUs stopped, by QEMU's own stamps.
    pauses_ms: tuple[float, ...] = ()
    #: Longest gap between two of the guest's heartbeats.
    silent_ms: float | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    #: Peak of what holds back the guest's own writes: scratch files, overlays.
    scratch_bytes: int | None = None
    #: Peak of every other file that is there for the time of the run only.
    beyond_scratch_bytes: int | None = None
    cpu_s: float | None = None
    #: Of `cpu_s`: what sha512 over the image's bytes takes.
    hash_cpu_s: float | None = None
    #: CPU of the guest's QEMU beyond what the guest usually takes.
    qemu_cpu_s: float | None = None
    rss_before_mib: float | None = None
    rss_peak_mib: float | None = None
    #: Longest write of the guest in each of its heartbeats.
    writes_before_us: tuple[int, ...] = ()
    writes_during_us: tuple[int, ...] = ()
    rate_mb_s: float | None = None
    limit_mb_s: float | None = None


def rows(samples: Sequence[Sample], order: Sequence[str]) -> list[Row]:
    """Return one row for each case and method; cases as they come, methods as `order` has them."""
    quiet_us: dict[str, list[int]] = {}
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        quiet_us.setdefault(sample.case, []).extend(sample.writes_before_us)
        groups.setdefault((sample.case, sample.method), []).append(sample)
    return [
        _row(groups[case, method], quiet_us[case])
        for case in quiet_us
        for method in order
        if (case, method) in groups
    ]


def ratios(samples: Sequence[Sample], case: str) -> dict[str, float | None]:
    """Return how our `backup` compares with the limits and with Nova's ways, in one case.

    `..._vs_nova_way` is against the one of Nova's two ways that took less, by
    its median; each of them is divided by its own bare PUTs first.
    """
    of: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.case == case:
            of.setdefault(sample.method, []).append(sample)
    backup = of.get("backup", [])
    nova_wall = _least([of.get(name, []) for name in _NOVA_WAYS], _wall_vs_put)
    nova_cpu = _least([of.get(name, []) for name in _NOVA_WAYS], _cpu_s)
    pauses = {method: _pauses(group) for method, group in of.items()}
    return {
        "wall_vs_put": median(map(_wall_vs_put, backup)),
        "wall_vs_nova_way": _paired(backup, nova_wall, _wall_vs_put),
        "wall_vs_nova_live": _paired(backup, of.get("nova-live", ()), _wall_vs_put),
        "wall_vs_nova_cold": _paired(backup, of.get("nova-cold", ()), _wall_vs_put),
        "cpu_vs_nova_way": _paired(backup, nova_cpu, _cpu_s),
        "cpu_unhashed_vs_nova_way": _paired(backup, nova_cpu, _unhashed_cpu_s, _cpu_s),
        "pause_vs_bare": _ratio(
            median(pauses.get("backup", ())), median(pauses.get("pause-bare", ()))
        ),
        "pause_vs_straightforward": _ratio(
            median(pauses.get("backup", ())), median(pauses.get("pause-straightforward", ()))
        ),
        "increment_bytes": _ratio(
            median(one.image_bytes for one in of.get(_INCREMENT, ())),
            median(one.image_bytes for one in backup),
        ),
    }


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def largest(values: Iterable[float | None]) -> float | None:
    """Return the largest of the values that are known; None if none is."""
    return max((value for value in values if value is not None), default=None)


def percentile(values: Iterable[float], percent: int) -> float | None:
    """Return the value that so many percent do not exceed (nearest rank); None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _row(group: Sequence[Sample], quiet_us: Sequence[int]) -> Row:
    pauses = _pauses(group)
    during_us = [one for sample in group for one in sample.writes_during_us]
    before_us = quiet_us if during_us else ()
    rate_mb_s = median(one.rate_mb_s for one in group)
    limit_mb_s = median(one.limit_mb_s for one in group)
    return {
        "case": group[0].case,
        "method": group[0].method,
        "rounds": len(group),
        "image_mib": _rounded(_over(median(one.image_bytes for one in group), _MIB)),
        "pause_ms_p50": _rounded(median(pauses)),
        "pause_ms_p99": _rounded(percentile(pauses, 99)),
        "pauses": len(pauses),
        "silent_ms_max": _rounded(largest(one.silent_ms for one in group), 1),
        "wall_s": _rounded(median(one.wall_s for one in group)),
        "wall_vs_put": _rounded(median(map(_wall_vs_put, group))),
        "read_ratio": _rounded(median(_per_byte(one, one.read_bytes) for one in group)),
        "written_ratio": _rounded(median(_per_byte(one, one.written_bytes) for one in group)),
        "temp_bytes": largest(map(_temp_bytes, group)),
        "scratch_bytes": largest(one.scratch_bytes for one in group),
        "beyond_scratch_bytes": largest(one.beyond_scratch_bytes for one in group),
        "cpu_s": _rounded(median(one.cpu_s for one in group)),
        "hash_cpu_s": _rounded(median(one.hash_cpu_s for one in group)),
        "qemu_cpu_s": _rounded(median(one.qemu_cpu_s for one in group)),
        "rss_before_mib": _rounded(group[0].rss_before_mib, 1),
        "rss_peak_mib": _rounded(largest(one.rss_peak_mib for one in group), 1),
        **_latencies("before", before_us),
        **_latencies("during", during_us),
        "write_p99_ratio": _rounded(_ratio(percentile(during_us, 99), percentile(before_us, 99))),
        "rate_mb_s": _rounded(rate_mb_s, 1),
        "limit_mb_s": limit_mb_s,
        "rate_vs_limit": _rounded(_ratio(rate_mb_s, limit_mb_s)),
    }


def _latencies(when: str, writes_us: Sequence[int]) -> Row:
    return {
        f"write_ms_p{percent}_{when}": _rounded(_over(percentile(writes_us, percent), 1e3))
        for percent in (50, 99)
    }


def _paired(
    ours: Sequence[Sample],
    theirs: Sequence[Sample],
    figure: Callable[[Sample], float | None],
    their_figure: Callable[[Sample], float | None] | None = None,
) -> float | None:
    """Return the median over the rounds of our figure by theirs."""
    theirs_of = {sample.round: (their_figure or figure)(sample) for sample in theirs}
    return median(_ratio(figure(sample), theirs_of.get(sample.round)) for sample in ours)


def _least(
    groups: Iterable[Sequence[Sample]], figure: Callable[[Sample], float | None]
) -> Sequence[Sample]:
    """Return the samples whose median figure is the least."""
    medians = [(median(map(figure, group)), group) for group in groups]
    known = [(value, group) for value, group in medians if value is not None]
    return min(known, key=lambda pair: pair[0])[1] if known else ()


def _pauses(group: Iterable[Sample]) -> list[float]:
    return [pause for sample in group for pause in sample.pauses_ms]


def _wall_vs_put(sample: Sample) -> float | None:
    """By the PUTs around it; an increment is no whole image, a PUT of so little is no measure."""
    return None if sample.method == _INCREMENT else _ratio(sample.wall_s, sample.put_s)


def _cpu_s(sample: Sample) -> float | None:
    return sample.cpu_s


def _unhashed_cpu_s(sample: Sample) -> float | None:
    return None if sample.cpu_s is None else sample.cpu_s - (sample.hash_cpu_s or 0.0)


def _temp_bytes(sample: Sample) -> float | None:
    if sample.scratch_bytes is None or sample.beyond_scratch_bytes is None:
        return None
    return sample.scratch_bytes + sample.beyond_scratch_bytes


def _per_byte(sample: Sample, count_bytes: int | None) -> float | None:
    return _ratio(count_bytes, sample.image_bytes)


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)
