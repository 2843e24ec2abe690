# SPDX-License-Identifier: Apache-2.0
"""Rebuilds of a booted guest, each between two bare GETs of its image.

As for a user: from the POST to the end of the job. The steps' times are the agent's own
word; the guest's silence is heard on its serial line, its boot included. `get` is one
thread that reads the image from Glance into a file on the guest's disk's file system,
and hashes nothing.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import requests

from tools.bench import client, host
from tools.bench.cases import CASES
from tools.bench.goals import Goal
from tools.bench.report import goal_lines
from tools.bench.stage import Stage, listening, private_cloud, say, settle

_MIB = 2**20
_PIECE_BYTES = 1 << 20
_TIMEOUT_S = 60
#: Nova's on the same platform (docs/benchmarks.md): wall time to ACTIVE, without its guest's boot.
_NOVA_WALL_S = 7.9
_OFF_MAX_S, _GET_RATIO_MAX = 1.0, 1.2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """One rebuild, in seconds; `get_s` is the mean of the GETs before and after it."""

    wall_s: float
    fetch_s: float
    build_s: float
    #: The guest shuts down by itself.
    stop_s: float
    #: No QEMU runs the guest: the swap, and the start until QEMU runs.
    off_s: float
    prove_s: float
    #: Between the guest's last heartbeat before and its first afterwards.
    silent_s: float
    get_s: float
    image_bytes: int


def run(rounds: int) -> dict[str, Any]:
    """Rebuild the guest so many times; return the figures as the JSON has them."""
    case = CASES[0]
    with (
        private_cloud() as cloud,
        listening(cloud) as hypervisor,
        Stage(cloud, hypervisor, case, 0) as stage,
    ):
        snapshot = client.ask(cloud, stage.guest)
        image_bytes = int(snapshot.ended()["size_bytes"])
        gets = [_get_s(stage, snapshot.image_id)]
        found = []
        for number in range(rounds):
            figures = _rebuild(stage, snapshot.image_id)
            gets.append(_get_s(stage, snapshot.image_id))
            get_s = statistics.mean(gets[-2:])
            found.append(Rebuilt(get_s=get_s, image_bytes=image_bytes, **figures))
            say(f"Round {number + 1}: {found[-1].wall_s:.2f} s, GET {get_s:.2f} s")
    return report(found, host.describe())


def report(found: Sequence[Rebuilt], about: dict[str, Any]) -> dict[str, Any]:
    """Return the medians, the ratios and the goals."""
    medians = {
        field.name: statistics.median(getattr(one, field.name) for one in found)
        for field in dataclasses.fields(Rebuilt)
    }
    fetch_vs_get = statistics.median((one.fetch_s + one.build_s) / one.get_s for one in found)
    goals = (
        Goal(name="guest off, s", figure=medians["off_s"], bound=_OFF_MAX_S),
        Goal(name="wall time, s (Nova's)", figure=medians["wall_s"], bound=_NOVA_WALL_S),
        Goal(name="fetch and build / bare GET", figure=fetch_vs_get, bound=_GET_RATIO_MAX),
    )
    return {
        "rounds": [dataclasses.asdict(one) for one in found],
        "medians": medians,
        "fetch_vs_get": fetch_vs_get,
        "goals": [{**dataclasses.asdict(goal), "met": goal.met} for goal in goals],
        "host": about,
    }


def table(found: dict[str, Any]) -> str:
    """Return the medians and the goals for people."""
    medians = found["medians"]
    size = f"{len(found['rounds'])} rebuilds of an image of {medians['image_bytes'] / _MIB:.0f} MiB"
    rows = [
        f"{name.removesuffix('_s'):8} {medians[name]:8.2f} s"
        for name in medians
        if name.endswith("_s")
    ]
    return "\n".join([size, "", *rows, "", *goal_lines(found["goals"]), ""])


def _get_s(stage: Stage, image_id: str) -> float:
    """Return how long a bare GET into a file takes."""
    target = stage.guest.disk.with_suffix(".got")
    url = f"{stage.cloud.glance.endpoint}/v2/images/{image_id}/file"
    settle()
    began = time.monotonic()
    with requests.get(url, stream=True, timeout=_TIMEOUT_S) as answer, target.open("wb") as file:
        answer.raise_for_status()
        for piece in answer.iter_content(_PIECE_BYTES):
            file.write(piece)
    took_s = time.monotonic() - began
    target.unlink()
    return took_s


def _rebuild(stage: Stage, image_id: str) -> dict[str, float]:
    settle()
    began = time.monotonic()
    asked = client.rebuild(stage.cloud, stage.guest, image_id)
    job = asked.ended()
    stage.guest.console.wait_for_beats(1)
    steps = {step["name"]: step for step in job["steps"]}
    lasted = {name: step["ended_at"] - step["began_at"] for name, step in steps.items()}
    silent_ms = stage.guest.console.longest_gap_ms(began - 1.0, time.monotonic())
    return {
        "wall_s": steps["release"]["ended_at"] - asked.asked_at,
        "fetch_s": lasted["fetch"],
        "build_s": lasted["build"],
        "stop_s": lasted["stop"],
        "off_s": lasted["swap"] + lasted["start"],
        "prove_s": lasted["prove"],
        "silent_s": silent_ms / 1e3,
    }
