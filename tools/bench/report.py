# SPDX-License-Identifier: Apache-2.0
"""The figures for people and for programs: a table, the goals, the JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from tools.bench.figures import Row, Sample, ratios, rows

_MIB = 2**20
_WRITING = "writing"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the table: `key` of a row, by `unit`."""

    title: str
    key: str
    digits: int = 2
    unit: float = 1


COLUMNS = (
    Column(title="runs", key="rounds", digits=0),
    Column(title="wall s", key="wall_s"),
    Column(title="x PUT", key="wall_vs_put"),
    Column(title="stop ms p50", key="pause_ms_p50", digits=1),
    Column(title="p99", key="pause_ms_p99", digits=1),
    Column(title="silent ms", key="silent_ms_max", digits=0),
    Column(title="read/B", key="read_ratio"),
    Column(title="written/B", key="written_ratio"),
    Column(title="scratch MiB", key="scratch_bytes", digits=1, unit=_MIB),
    Column(title="temp MiB", key="beyond_scratch_bytes", digits=1, unit=_MIB),
    Column(title="CPU s", key="cpu_s"),
    Column(title="of it hash", key="hash_cpu_s"),
    Column(title="QEMU CPU s", key="qemu_cpu_s"),
    Column(title="RSS MiB", key="rss_peak_mib", digits=0),
    Column(title="write ms p50", key="write_ms_p50_during"),
    Column(title="p99 ", key="write_ms_p99_during"),
    Column(title="x quiet p99", key="write_p99_ratio"),
    Column(title="MB/s", key="rate_mb_s", digits=0),
    Column(title="limit", key="limit_mb_s", digits=0),
)


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


def report(samples: Sequence[Sample], host: dict[str, Any]) -> dict[str, Any]:
    """Return everything, as the JSON has it; `ratios` are those of the first case."""
    cases = list(dict.fromkeys(sample.case for sample in samples))
    by_case = {case: _rounded(ratios(samples, case)) for case in cases}
    found = {
        "rows": rows(samples),
        "ratios": by_case[cases[0]],
        "ratios_by_case": by_case,
        "host": host,
    }
    found["goals"] = [{**dataclasses.asdict(goal), "met": goal.met} for goal in goals(found)]
    return found


def goals(found: dict[str, Any]) -> list[Goal]:
    """Return what was aimed at, with what the first case (and, of latency, a writing one) shows."""
    by_method = {(row["case"], row["method"]): row for row in found["rows"]}
    first = found["rows"][0]["case"]
    backup = by_method.get((first, "backup"), {})
    writing = next((case for case, _ in by_method if case.endswith(_WRITING)), first)
    limited = by_method.get((writing, "backup-limited"), {})
    of = found["ratios"]
    return [
        Goal(name="wall time / bare PUT", figure=of["wall_vs_put"], bound=1.15),
        Goal(name="wall time / Nova's way", figure=of["wall_vs_nova_way"], bound=0.6),
        Goal(name="bytes read / image byte", figure=backup.get("read_ratio"), bound=1.02),
        Goal(
            name="temporary bytes beyond scratch",
            figure=backup.get("beyond_scratch_bytes"),
            bound=0,
        ),
        Goal(name="agent's CPU / Nova's way's", figure=of["cpu_vs_nova_way"], bound=0.9),
        Goal(name="the same, without sha512", figure=of["cpu_unhashed_vs_nova_way"], bound=0.5),
        Goal(name="agent's RSS, MiB", figure=backup.get("rss_peak_mib"), bound=150),
        Goal(name="vCPU stop / bare suspend+resume", figure=of["pause_vs_bare"], bound=15),
        Goal(
            name="vCPU stop / straightforward way", figure=of["pause_vs_straightforward"], bound=0.5
        ),
        Goal(name="increment of 1 % / full, bytes", figure=of["increment_bytes"], bound=0.03),
        Goal(
            name="guest's write p99 at the default limit / quiet",
            figure=limited.get("write_p99_ratio"),
            bound=4,
        ),
        Goal(
            name="rate / limit at the default limit",
            figure=_share(limited.get("rate_mb_s"), limited.get("limit_mb_s")),
            bound=1.05,
        ),
    ]


def table(found: dict[str, Any]) -> str:
    """Return the rows and the goals for people."""
    return "\n".join([*_table(found["rows"], COLUMNS), "", *_goals(found["goals"]), ""])


def _table(of: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    width = max(len(row["method"]) for row in of) + 2
    head = " " * width + "".join(f"{one.title:>{len(one.title) + 2}}" for one in columns)
    lines: list[str] = []
    case = None
    for row in of:
        if row["case"] != case:
            case = row["case"]
            lines += ["", f"{case}", head]
        cells = (f"{_cell(row[one.key], one):>{len(one.title) + 2}}" for one in columns)
        lines.append(f"{row['method']:{width}}" + "".join(cells))
    return lines[1:]


def _cell(value: float | None, column: Column) -> str:
    return "-" if value is None else f"{value / column.unit:.{column.digits}f}"


def _goals(found: Iterable[dict[str, Any]]) -> list[str]:
    words = {True: "met", False: "MISSED", None: "not measured"}
    return [
        f"{goal['name']:50}"
        + f"{'-' if goal['figure'] is None else format(goal['figure'], '.2f'):>9}"
        + f"   at most {goal['bound']:<6} {words[goal['met']]}"
        for goal in found
    ]


def _share(value: float | None, of: float | None) -> float | None:
    return None if value is None or not of else round(value / of, 2)


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in values.items()}
