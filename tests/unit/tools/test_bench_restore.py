# SPDX-License-Identifier: Apache-2.0
"""The figures of rebuilds: medians, a ratio by round, goals."""

from __future__ import annotations

from tools.bench import restore
from tools.bench.restore import Rebuilt


def rebuilt(fetch_s: float, get_s: float, **other: float) -> Rebuilt:
    times = {"wall_s": 6.0, "build_s": 0.0, "stop_s": 1.0, "off_s": 0.5, "prove_s": 3.0}
    return Rebuilt(
        fetch_s=fetch_s, get_s=get_s, silent_s=4.0, image_bytes=1 << 20, **(times | other)
    )


def test_a_ratio_is_of_one_round_and_the_rest_are_medians() -> None:
    found = restore.report([rebuilt(1, 1), rebuilt(3, 2), rebuilt(9, 4)], {})
    assert found["fetch_vs_get"] == 1.5
    assert found["medians"]["fetch_s"] == 3
    assert [goal["met"] for goal in found["goals"]] == [True, True, False]


def test_a_guest_that_is_off_for_long_misses_its_goal_and_the_table_says_so() -> None:
    found = restore.report([rebuilt(1, 1, off_s=2.0)], {})
    assert not found["goals"][0]["met"]
    table = restore.table(found)
    assert "guest off, s" in table
    assert "MISSED" in table
    assert "1 rebuilds of an image of 1 MiB" in table
