# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong, and whenever: the guest runs on, and the image is whole or gone."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import checks
from tests.faults.faults import FAULTS, Fault, Scene
from tests.faults.table import Told, table
from tests.functional.snapshots import ask, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

#: The guest's agent is there, and freezes its file systems for each snapshot.
FREEZES = {"hw_qemu_guest_agent": "yes"}
#: A job of the test guest takes about so long; faults come at any instant of it.
JOB_S = 3.6
#: So many draws at the most for each fault that counts: some come when the job is over.
_DRAWS = 3
#: How long a job may take to its end: Glance and the reaper are patient, too.
PATIENCE_S = 180.0


def test_a_fault_at_any_instant_leaves_a_guest_that_runs_and_an_image_that_is_whole_or_gone(
    request: pytest.FixtureRequest,
    cloud: Cloud,
    new_guest: Callable[..., Guest],
    agent_options: Callable[..., None],
    tmp_path: Path,
    seed: int,
    dice: random.Random,
) -> None:
    guests = {"offline": new_guest(start=False)}
    running = new_guest(image_properties=FREEZES)
    running.wait_for_agent()
    told: list[Told] = []
    kills: int = request.config.getoption("--kills")
    names = request.config.getoption("--fault") or list(FAULTS)
    for number, name in enumerate(drawn(dice, names, kills * _DRAWS)):
        if sum(one.counts for one in told) == kills:
            break
        method, after_s = dice.choice(FAULTS[name].methods), dice.uniform(0.0, JOB_S)
        heals_after_s = dice.choice(FAULTS[name].heals_after_s)
        where = (
            f"fault {number + 1} for {kills}: {name}, {method}, {after_s:.3f} s after 202, "
            f"healed after {heals_after_s} s, --seed {seed}"
        )
        print(where, flush=True)  # with -s it can be followed
        agent_options("method = auto" if method == "offline" else f"method = {method}")
        scene = Scene(cloud, guests.get(method, running))
        with logs_told(cloud):
            told.append(happen(scene, name, method, after_s, heals_after_s, tmp_path, where))
        print(f"    {told[-1]}", flush=True)
        if request.config.getoption("--table"):
            request.config.getoption("--table").write_text(table(told, seed))
    assert sum(one.counts for one in told) == kills, f"too many came to nothing, --seed {seed}"


def drawn(dice: random.Random, names: list[str], count: int) -> list[str]:
    """Return so many faults: each once before any comes again."""
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += dice.sample(names, len(names))
    return chosen[:count]


def happen(
    scene: Scene,
    name: str,
    method: str,
    after_s: float,
    heals_after_s: float | None,
    directory: Path,
    where: str,
) -> Told:
    """Let one fault come and go, and look at what it left."""
    fault, cloud, guest = FAULTS[name], scene.cloud, scene.guest
    assert guest is not None
    asked = ask(cloud, guest)
    time.sleep(after_s)  # the instant is the point
    is_open = asked.job()["finished_at"] is None
    began = time.monotonic()
    counts = fault.strike(scene) and is_open
    if is_running(fault, guest) and fault.libvirt_answers:
        checks.assert_runs(guest, where)
    if fault.ends_guest:
        checks.assert_disk_is_sound(guest, where)
    if heals_after_s is not None:
        time.sleep(heals_after_s)  # how long it is away is the point
        fault.heal(scene)
    wait_for(lambda: asked.job()["finished_at"], f"the end of the job ({where})", PATIENCE_S)
    recovered_s = time.monotonic() - began
    if heals_after_s is None:
        fault.heal(scene)
    if guest.has_been_started:
        checks.assert_runs(guest, where)
    checks.assert_whole_or_gone(asked, directory, where)
    checks.assert_untouched(cloud, guest, where)
    checks.assert_told(asked, where)
    job = asked.job()
    return Told(name, method, job["state"], job["reason_code"] or "", recovered_s, counts)


@contextlib.contextmanager
def logs_told(cloud: Cloud) -> Iterator[None]:
    """Print what both daemons logged meanwhile, if something does not hold."""
    logs = [cloud.log_directory / name for name in ("n-api.log", "n-cpu.log")]
    before = {log: log.stat().st_size for log in logs}
    try:
        yield
    except BaseException:
        for log in logs:
            with log.open() as lines:
                lines.seek(before[log])
                told = "".join(line for line in lines if ' "GET /' not in line)
            print(f"--- {log.name}\n{told}", flush=True)
        raise


def is_running(fault: Fault, guest: Guest) -> bool:
    """Tell whether the guest has to run on through the fault."""
    return guest.has_been_started and not fault.ends_guest
