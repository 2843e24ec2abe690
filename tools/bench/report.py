# SPDX-License-Identifier: Apache-2.0
"""The figures for people and for programs: a table, the goals, the JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tools.bench.figures import Row, Sample, ratios, rows
from tools.bench.goals import Goal, Ratios

_MIB = 2**20

Goals = Callable[[Sequence[Row], Ratios], Iterable[Goal]]


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
    Column(title="stops", key="pauses", digits=0),
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
    Column(title="p99", key="write_ms_p99_during"),
    Column(title="x quiet p99", key="write_p99_ratio"),
    Column(title="MB/s", key="rate_mb_s", digits=0),
    Column(title="limit", key="limit_mb_s", digits=0),
)


def report(
    samples: Sequence[Sample], order: Sequence[str], goals: Goals, host: dict[str, Any]
) -> dict[str, Any]:
    """Return everything, as the JSON has it; `ratios` are those of the first case.

    `order` names the methods as the rows shall follow each other.
    """
    found = rows(samples, order)
    cases = dict.fromkeys(row["case"] for row in found)
    by_case = {case: _rounded(ratios(samples, case)) for case in cases}
    return {
        "rows": found,
        "ratios": next(iter(by_case.values())),
        "ratios_by_case": by_case,
        "goals": [{**dataclasses.asdict(goal), "met": goal.met} for goal in goals(found, by_case)],
        "host": host,
    }


def table(found: dict[str, Any]) -> str:
    """Return the rows and the goals for people."""
    known = [one for one in COLUMNS if any(row[one.key] is not None for row in found["rows"])]
    return "\n".join([*_table(found["rows"], known), "", *goal_lines(found["goals"]), ""])


def _table(of: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    width = max(len(row["method"]) for row in of)
    lines: list[str] = []
    for case in dict.fromkeys(row["case"] for row in of):
        cells = [[one.title.strip() for one in columns]]
        cells += [
            [_cell(row[one.key], one) for one in columns] for row in of if row["case"] == case
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        names = ["", *(row["method"] for row in of if row["case"] == case)]
        lines += ["", case]
        for name, line in zip(names, cells, strict=True):
            padded = (f"{cell:>{wide}}" for cell, wide in zip(line, widths, strict=True))
            lines.append("  ".join([f"{name:{width}}", *padded]))
    return lines[1:]


def _cell(value: float | None, column: Column) -> str:
    return "-" if value is None else f"{value / column.unit + 0.0:.{column.digits}f}"


def goal_lines(found: Iterable[dict[str, Any]]) -> list[str]:
    """Return a line for each goal: its figure, its bound, whether it is met."""
    words = {True: "met", False: "MISSED", None: "not measured"}
    goals = list(found)
    width = max((len(goal["name"]) for goal in goals), default=0)
    return [
        f"{goal['name']:{width}}  {_figure(goal['figure'])}  at most {goal['bound']:<5}"
        f"  {words[goal['met']]}"
        for goal in goals
    ]


def _figure(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:8.2f}"


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in values.items()}
