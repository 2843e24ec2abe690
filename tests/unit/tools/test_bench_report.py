# SPDX-License-Identifier: Apache-2.0
"""The benchmark's report: the JSON that others read, the table and picture for people."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from tools.bench import goals, pause, plot, report
from tools.bench.cases import CASES, QUICK, Course, full
from tools.bench.figures import Sample
from tools.bench.run import ORDER, wanted

MIB = 2**20
ROW_KEYS = {
    "case", "method", "pause_ms_p50", "pause_ms_p99", "silent_ms_max", "wall_s", "read_ratio",
    "temp_bytes", "cpu_s", "rss_peak_mib", "write_p99_ratio",
}  # fmt: skip
RATIO_KEYS = {
    "wall_vs_put", "wall_vs_nova_way", "cpu_vs_nova_way", "pause_vs_bare", "increment_bytes",
}  # fmt: skip


def measured(case: str, method: str, wall_s: float, **known: Any) -> Sample:
    usual: dict[str, Any] = {
        "put_s": 3.0,
        "image_bytes": 600 * MIB,
        "read_bytes": 600 * MIB,
        "scratch_bytes": MIB // 4,
        "beyond_scratch_bytes": 0,
        "cpu_s": 1.2,
        "hash_cpu_s": 0.7,
        "rss_peak_mib": 120.0,
        "silent_ms": 31.0,
    }
    return Sample(case=case, method=method, wall_s=wall_s, **usual | known)


@pytest.fixture
def found() -> dict[str, Any]:
    """A report of a small run."""
    idle, writing = "2 GiB, idle", "2 GiB, writing"
    samples = [
        measured(idle, "put", 3.0, cpu_s=0.2),
        measured(idle, "backup", 3.3, pauses_ms=(20.0,)),
        measured(idle, "nova-live", 6.0, beyond_scratch_bytes=600 * MIB, cpu_s=2.0),
        Sample(case=idle, method="pause-bare", pauses_ms=(1.5,)),
        measured(
            writing,
            "backup-limited",
            4.5,
            writes_before_us=(1000,),
            writes_during_us=(5000,),
            rate_mb_s=180.0,
            limit_mb_s=200,
        ),
    ]
    return report.report(samples, ORDER, goals.of_snapshots, {"cores": 2})


def test_the_json_has_the_promised_keys(found: dict[str, Any]) -> None:
    again = json.loads(json.dumps(found))
    assert all(set(row) >= ROW_KEYS for row in again["rows"])
    assert set(again["ratios"]) >= RATIO_KEYS
    assert again["ratios"] == again["ratios_by_case"]["2 GiB, idle"]
    assert again["ratios"]["pause_vs_bare"] == pytest.approx(13.33, abs=0.01)


def test_goals_are_told_as_met_or_missed(found: dict[str, Any]) -> None:
    met = {goal["name"]: goal["met"] for goal in found["goals"]}
    assert met["2 GiB, idle: wall time / bare PUT"] is True
    assert met["2 GiB, idle: wall time / Nova's way"] is True
    assert met["2 GiB, idle: bytes of temporary space beyond scratch"] is True
    assert met["2 GiB, writing: guest's write p99 at the default limit / quiet"] is False


def test_a_goal_without_a_figure_is_not_told(found: dict[str, Any]) -> None:
    assert not [goal for goal in found["goals"] if "increment" in goal["name"]]


def test_the_table_has_a_line_for_each_row_and_each_goal(found: dict[str, Any]) -> None:
    lines = report.table(found).splitlines()
    for row in found["rows"]:
        assert any(line.startswith(row["method"]) for line in lines)
    assert sum("MISSED" in line for line in lines) == sum(
        goal["met"] is False for goal in found["goals"]
    )


def test_the_columns_of_a_table_stand_below_each_other(found: dict[str, Any]) -> None:
    blocks = report.table(found).split("\n\n")
    for block in blocks[:-1]:
        assert len({len(line) for line in block.splitlines()[1:]}) == 1


def test_the_picture_is_well_formed_and_names_every_method(found: dict[str, Any]) -> None:
    picture = ET.fromstring(plot.svg(found))  # noqa: S314 # it is our own
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"2 GiB, idle", "backup", "nova-live", "pause-bare"} <= set(texts)
    width = float(picture.attrib["width"])
    bars = [one for one in picture.iter("{http://www.w3.org/2000/svg}rect") if "x" in one.attrib]
    assert bars
    assert all(float(one.attrib["x"]) + float(one.attrib["width"]) <= width for one in bars)


@pytest.mark.parametrize(
    ("largest", "log", "expected"),
    [
        (1.43, False, [0, 0.5, 1, 1.5]),
        (8.0, False, [0, 2, 4, 6, 8]),
        (322.0, True, [1, 10, 100, 1000]),
        (0.4, True, [1, 10]),
    ],
)
def test_an_axis_has_few_round_marks(largest: float, log: bool, expected: list[float]) -> None:
    assert plot.ticks(largest, log=log) == expected


def test_pauses_are_held_to_what_their_hosts_settings_allow() -> None:
    samples = [
        Sample(case=f"1 GiB; {host.name}", method=method, pauses_ms=(stop_ms,))
        for host in pause.HOSTS
        for method, stop_ms in (("backup", 20.0), ("pause-bare", 2.0))
    ]
    found = report.report(samples, pause.ORDER, pause.goals, {})
    met = [goal["met"] for goal in found["goals"] if goal["name"].endswith("/ bare")]
    assert met == [True, False], "ten times a bare stop: below 15, above 9"


def test_a_quick_run_repeats_the_headlines_and_has_every_method_once() -> None:
    idle = QUICK.courses[0]
    assert set(wanted(idle, (), 0)) > set(wanted(idle, (), 1)) >= {"backup", "nova-live", "stops"}
    assert "increment" not in wanted(idle, (), 1)


def test_a_full_run_has_every_method_in_each_round() -> None:
    for course in full(5).courses:
        assert len(wanted(course, (), 4)) >= len(wanted(course, (), 0)) - 1


def test_only_what_was_asked_for_is_run() -> None:
    course = Course(case=CASES[1], rounds=1, extra_rounds=1, stops=0)
    assert wanted(course, ("backup", "offline"), 0) == ["backup"], "no guest that is off writes"
