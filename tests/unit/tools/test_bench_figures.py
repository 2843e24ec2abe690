# SPDX-License-Identifier: Apache-2.0
"""What the benchmark says follows from its samples: medians, ratios by round, percentiles."""

from __future__ import annotations

from typing import Any

import pytest

from tools.bench.figures import Sample, percentile, ratios, rows

CASE = "2 GiB, idle"


def sample(method: str, **known: Any) -> Sample:
    return Sample(case=known.pop("case", CASE), method=method, **known)


def row(*samples: Sample) -> dict[str, Any]:
    return rows(samples, [samples[0].method])[0]


def test_a_row_is_the_median_of_its_rounds() -> None:
    walls = (3.0, 9.0, 4.0)
    of = row(*(sample("backup", wall_s=wall_s, put_s=2.0) for wall_s in walls))
    assert (of["wall_s"], of["wall_vs_put"], of["rounds"]) == (4.0, 2.0, 3)


def test_each_run_is_compared_with_its_own_puts() -> None:
    """A machine that is slow for a while makes both slow, and the ratio stays."""
    of = row(
        sample("backup", wall_s=3.0, put_s=2.5),
        sample("backup", wall_s=6.0, put_s=5.0),
        sample("backup", wall_s=12.0, put_s=10.0),
    )
    assert of["wall_vs_put"] == 1.2


def test_peaks_are_the_largest_of_all_rounds() -> None:
    of = row(
        sample(
            "backup", silent_ms=30.0, rss_peak_mib=120.0, scratch_bytes=5, beyond_scratch_bytes=0
        ),
        sample(
            "backup", silent_ms=20.0, rss_peak_mib=140.0, scratch_bytes=9, beyond_scratch_bytes=0
        ),
    )
    assert (of["silent_ms_max"], of["rss_peak_mib"]) == (30.0, 140.0)
    assert (of["temp_bytes"], of["scratch_bytes"], of["beyond_scratch_bytes"]) == (9, 9, 0)


def test_rows_follow_the_order_of_methods_within_each_case() -> None:
    samples = [
        sample("put", case="a"),
        sample("backup", case="a"),
        sample("put", case="b"),
        sample("backup", case="b"),
    ]
    found = [(one["case"], one["method"]) for one in rows(samples, ["backup", "overlay", "put"])]
    assert found == [("a", "backup"), ("a", "put"), ("b", "backup"), ("b", "put")]


def test_write_latency_is_compared_with_all_quiet_stretches_of_the_case() -> None:
    found = rows(
        [
            sample("put", writes_before_us=(1000,) * 50, writes_during_us=(2000,) * 100),
            sample("backup", writes_before_us=(3000,) * 50, writes_during_us=(6000,) * 100),
        ],
        ["put", "backup"],
    )
    assert [one["write_ms_p99_before"] for one in found] == [3.0, 3.0]
    assert [one["write_p99_ratio"] for one in found] == [0.67, 2.0]


def test_what_was_not_measured_is_none_and_not_nothing() -> None:
    of = row(sample("pause-bare", pauses_ms=(1.5,)))
    assert (of["wall_s"], of["read_ratio"], of["temp_bytes"], of["write_p99_ratio"]) == (None,) * 4
    assert of["pause_ms_p50"] == 1.5


def test_stops_of_a_method_count_wherever_they_were_seen() -> None:
    found = ratios(
        [
            sample("backup", pauses_ms=(20.0,), wall_s=3.0, put_s=3.0),
            sample("backup", pauses_ms=(30.0,)),
            sample("backup", pauses_ms=(22.0,)),
            sample("pause-bare", pauses_ms=(2.0,)),
            sample("pause-straightforward", pauses_ms=(55.0,)),
        ],
        CASE,
    )
    assert found["pause_vs_bare"] == 11.0
    assert found["pause_vs_straightforward"] == 0.4


def test_ours_is_compared_with_the_faster_of_novas_ways_round_by_round() -> None:
    found = ratios(
        [
            sample("backup", round=0, wall_s=3.0, put_s=3.0, cpu_s=1.0, hash_cpu_s=0.6),
            sample("backup", round=1, wall_s=8.0, put_s=4.0, cpu_s=1.0, hash_cpu_s=0.6),
            sample("nova-live", round=0, wall_s=6.0, put_s=3.0, cpu_s=2.0),
            sample("nova-live", round=1, wall_s=8.0, put_s=4.0, cpu_s=2.0),
            sample("nova-cold", round=0, wall_s=9.0, put_s=3.0, cpu_s=4.0),
            sample("nova-cold", round=1, wall_s=12.0, put_s=4.0, cpu_s=4.0),
        ],
        CASE,
    )
    assert found["wall_vs_nova_way"] == pytest.approx((0.5 + 1.0) / 2)
    assert found["wall_vs_nova_cold"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found["cpu_vs_nova_way"] == 0.5
    assert found["cpu_unhashed_vs_nova_way"] == pytest.approx(0.2)


def test_an_increment_is_told_by_its_bytes_and_not_by_the_put_of_a_whole_image() -> None:
    samples = [
        sample("backup", image_bytes=600, wall_s=3.0, put_s=3.0),
        sample("increment", image_bytes=6, wall_s=0.5, put_s=0.03),
    ]
    assert ratios(samples, CASE)["increment_bytes"] == 0.01
    assert row(samples[1])["wall_vs_put"] is None


def test_without_a_method_its_ratios_are_none() -> None:
    found = ratios([sample("backup", wall_s=3.0, put_s=3.0)], CASE)
    assert found["wall_vs_put"] == 1.0
    assert found["wall_vs_nova_way"] is None
    assert found["increment_bytes"] is None


def test_a_percentile_is_a_value_that_was_seen() -> None:
    assert percentile([], 99) is None
    assert percentile([5.0], 99) == 5.0
    assert percentile(range(1, 101), 99) == 99
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
