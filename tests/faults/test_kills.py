# SPDX-License-Identifier: Apache-2.0
"""Whatever is killed, and whenever: the guest runs on, and the image is whole or gone.

Everything is looked at from outside (virsh, the guest's own records, Glance, the
API, directories), never in our own records.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.functional.snapshots import Asked, ask, leftovers, log_lines, wait_for
from tests.functional.test_snapshot import assert_sound
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest
from tools.stack.records import newest_record

METHODS = ("backup", "overlay", "offline")
#: A pause may last so long at the most ([capture] pause_budget), and a little for looking.
BUDGET_S = 6.0
#: An upload of the test guest takes about so long; faults come at any instant of it.
UPLOAD_S = 5.0
ENDED = ("done", "error", "cancelled")


def kill_agent(cloud: Cloud) -> None:
    """Kill the agent's whole process group and start another one."""
    cloud.agent.kill()
    cloud.start_agent()


def kill_api(cloud: Cloud) -> None:
    """Kill the API and start another one."""
    cloud.api.kill()
    cloud.start_api()


def kill_glance(cloud: Cloud) -> None:
    """Kill the image service and start it again."""
    cloud.glance.process.kill()
    cloud.glance.start()


def kill_libvirtd(cloud: Cloud) -> None:
    """Kill libvirt's daemon and start it again; guests run on meanwhile."""
    cloud.libvirtd.process.kill()
    cloud.libvirtd.start()


def kill_broker(cloud: Cloud) -> None:
    """Kill RabbitMQ and start it again."""
    cloud.rabbitmq.process.kill()
    cloud.rabbitmq.start()


def kill_sentinel(cloud: Cloud) -> None:
    """Kill the sentinel alone."""
    kill_children_of_the_agent(cloud, "compute_agent.guest.resumer")


def kill_qemu_nbd(cloud: Cloud) -> None:
    """Kill whoever serves a frozen disk for us."""
    kill_children_of_the_agent(cloud, "qemu-nbd")


def kill_children_of_the_agent(cloud: Cloud, words: str) -> None:
    for found in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = int(found.read_text().split("\nPPid:")[1].split()[0])
            command = (found.parent / "cmdline").read_bytes().decode(errors="replace")
        except (OSError, IndexError):
            continue  # it ended while we looked
        if parent == cloud.agent.pid and words in command:
            os.kill(int(found.parent.name), signal.SIGKILL)


FAULTS: dict[str, Callable[[Cloud], None]] = {
    "agent": kill_agent,
    "api": kill_api,
    "glance": kill_glance,
    "libvirtd": kill_libvirtd,
    "broker": kill_broker,
    "sentinel": kill_sentinel,
    "qemu-nbd": kill_qemu_nbd,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What came of one fault; times in seconds."""

    fault: str
    method: str
    outcome: str
    reason: str
    recovered_s: float


def test_a_kill_at_any_instant_leaves_a_guest_that_runs_and_an_image_that_is_whole_or_gone(
    request: pytest.FixtureRequest,
    cloud: Cloud,
    new_guest: Callable[..., Guest],
    agent_options: Callable[..., None],
    tmp_path: Path,
    seed: int,
    dice: random.Random,
) -> None:
    running, off = new_guest(), new_guest(start=False)
    told = []
    for number in range(request.config.getoption("--kills")):
        fault, method = dice.choice(list(FAULTS)), dice.choice(METHODS)
        after_s = dice.uniform(0.0, UPLOAD_S)
        where = f"kill {number + 1}: {fault}, {method}, {after_s:.3f} s after 202, --seed {seed}"
        print(where, flush=True)  # with -s it can be followed
        agent_options("method = auto" if method == "offline" else f"method = {method}")
        guest = off if method == "offline" else running
        asked = ask(cloud, guest)
        time.sleep(after_s)  # the instant is the point
        began = time.monotonic()
        FAULTS[fault](cloud)
        if guest is running:
            wait_for(lambda: running.state() == "running", f"a running guest ({where})", BUDGET_S)
        job = asked.ended()
        told.append(
            Told(fault, method, job["state"], job["reason_code"] or "", time.monotonic() - began)
        )
        assert_whole_or_gone(cloud, asked, tmp_path, where)
        assert_untouched(cloud, guest, where)
        assert log_lines(cloud, "n-cpu.log", asked.job()["id"]), where
    if request.config.getoption("--table"):
        request.config.getoption("--table").write_text(table(told, seed))


def assert_whole_or_gone(cloud: Cloud, asked: Asked, directory: Path, where: str) -> None:
    """The image is active and bit-true, or Glance has none of it (the reaper may take a while)."""
    job = asked.job()
    assert job["state"] in ENDED, where
    if job["state"] != "done":
        wait_for(lambda: asked.image() is None, f"the image to go ({where})", 60)
        return
    asked = dataclasses.replace(asked, image_id=job["image_id"])
    image = asked.image()
    assert image is not None, where
    assert image["status"] == "active", where
    assert image["os_hash_value"] == job["sha512"], where
    raw = assert_sound(asked, directory)
    if job["capture"]["method"] != "offline":
        assert newest_record(raw) > 0, where
    for file in directory.iterdir():
        file.unlink()


def assert_untouched(cloud: Cloud, guest: Guest, where: str) -> None:
    """The guest is on its own disk, persistent, free, and nothing of ours is left."""
    assert cloud.server(guest)["OS-EXT-STS:task_state"] is None, where
    assert str(guest.disk) in cloud.libvirtd.virsh("domblklist", guest.name).split(), where
    assert "yes" in cloud.libvirtd.virsh("dominfo", guest.name).split("Persistent:")[1], where
    wait_for(lambda: leftovers(cloud) == [], f"nothing to be left ({where})", 30)
    overlays = [path for path in guest.disk.parent.iterdir() if ".stillframe-" in path.name]
    assert overlays == [], where
    if guest.state() == "running":
        guest.console.wait_for_beats(20, timeout_s=20)


def table(told: list[Told], seed: int) -> str:
    """Return what came of a run, by fault and method."""
    rows: dict[tuple[str, str], list[Told]] = collections.defaultdict(list)
    for one in told:
        rows[one.fault, one.method].append(one)
    lines = [
        f"{len(told)} kills, seed {seed}.\n",
        "| killed | method | kills | whole | gone, and why | until the end, longest, s |",
        "|---|---|---|---|---|---|",
    ]
    for (fault, method), group in sorted(rows.items()):
        whole = sum(one.outcome == "done" for one in group)
        gone = collections.Counter(one.reason for one in group if one.outcome != "done")
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(gone.items())) or "–"
        longest = max(one.recovered_s for one in group)
        lines.append(f"| {fault} | {method} | {len(group)} | {whole} | {why} | {longest:.0f} |")
    return "\n".join(lines) + "\n"
