# SPDX-License-Identifier: Apache-2.0
"""What can happen to a cloud, and what puts it right again: FAULTS.

Each fault strikes at an instant that a test chooses; some time later its cause
is mended, as systemd or an operator would. Processes are found by their parent
or by what only they can have in their command lines, never by name alone.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.functional.snapshots import wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest
from tools.stack.process import Process

#: A pause may last so long at the most ([capture] pause_budget), and a little for looking.
BUDGET_S = 6.0
_DRAIN_S = 40.0
METHODS = ("backup", "overlay", "offline")


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """Where a fault strikes."""

    cloud: Cloud
    #: None where a job is to make it.
    guest: Guest | None = None


Act = Callable[[Scene], None]
#: It returns whether there was anything to hit.
Strike = Callable[[Scene], bool]


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong, and how it comes right again."""

    strike: Strike
    heal: Act
    #: Where there is something that it can hit.
    methods: tuple[str, ...] = METHODS
    #: Seconds from one to the other, one of which is drawn; None: not before the job has ended.
    heals_after_s: tuple[float | None, ...] = (0.0, 5.0)
    #: Which jobs it can hit beside snapshots.
    kinds: tuple[str, ...] = ("backup", "create", "rebuild")
    #: The guest loses its power with it.
    ends_guest: bool = False
    #: libvirt answers in between.
    libvirt_answers: bool = True


def kill_agent(scene: Scene) -> bool:
    """Kill the agent's whole process group."""
    return _kill(scene.cloud.agent)


def start_agent(scene: Scene) -> None:
    scene.cloud.start_agent()


def stop_agent(scene: Scene) -> bool:
    """Tell the agent to stop, and wait until it has: it drains first."""
    return _stop(scene.cloud.agent)


def kill_api(scene: Scene) -> bool:
    return _kill(scene.cloud.api)


def stop_api(scene: Scene) -> bool:
    return _stop(scene.cloud.api)


def start_api(scene: Scene) -> None:
    scene.cloud.start_api()


def kill_glance(scene: Scene) -> bool:
    return _kill(scene.cloud.glance.process)


def start_glance(scene: Scene) -> None:
    scene.cloud.glance.start()


def stall_glance(scene: Scene) -> bool:
    """Have Glance take connections and answer nothing."""
    return _signal_group(scene.cloud.glance.process.pid, signal.SIGSTOP)


def wake_glance(scene: Scene) -> None:
    _signal_group(scene.cloud.glance.process.pid, signal.SIGCONT)


def kill_libvirtd(scene: Scene) -> bool:
    """Kill libvirt's daemon; guests run on meanwhile."""
    return _kill(scene.cloud.libvirtd.process)


def start_libvirtd(scene: Scene) -> None:
    scene.cloud.libvirtd.start()


def kill_broker(scene: Scene) -> bool:
    return _kill(scene.cloud.rabbitmq.process)


def start_broker(scene: Scene) -> None:
    scene.cloud.rabbitmq.start()


def stall_broker(scene: Scene) -> bool:
    """Have RabbitMQ take connections and answer nothing."""
    return _signal_group(scene.cloud.rabbitmq.process.pid, signal.SIGSTOP)


def wake_broker(scene: Scene) -> None:
    _signal_group(scene.cloud.rabbitmq.process.pid, signal.SIGCONT)


def kill_sentinel(scene: Scene) -> bool:
    """Kill the sentinel alone: the agent starts another before its next pause."""
    return _kill_children_of_the_agent(scene.cloud, "compute_agent.guest.resumer")


def kill_qemu_nbd(scene: Scene) -> bool:
    """Kill whoever serves a frozen disk for us."""
    return _kill_children_of_the_agent(scene.cloud, "qemu-nbd")


def kill_qemu(scene: Scene) -> bool:
    """Kill the guest's QEMU; libvirt then takes the guest for shut off."""
    hit, guest = False, scene.guest
    assert guest is not None
    run = guest.run_id()
    for pid, command in _processes():
        if guest.uuid in command and "qemu-system" in command.split("\0", 1)[0]:
            os.kill(pid, signal.SIGKILL)
            hit = True
    if hit:
        # A rebuild may have started it again.
        wait_for(
            lambda: guest.state() == "shut off" or guest.run_id() != run, "libvirt to notice", 10
        )
    return hit


def start_guest(scene: Scene) -> None:
    guest = scene.guest
    if guest is not None and guest.has_been_started and guest.state() == "shut off":
        guest.start()


def nothing(_scene: Scene) -> None:
    """It comes right by itself."""


def both(*strikes: Strike) -> Strike:
    """Strike several things in order; a hit is one that hits them all."""

    def strike(scene: Scene) -> bool:
        return all([one(scene) for one in strikes])

    return strike


def in_turn(*acts: Act) -> Act:
    """Put several things right in order."""

    def act(scene: Scene) -> None:
        for one in acts:
            one(scene)

    return act


FAULTS: dict[str, Fault] = {
    "agent": Fault(kill_agent, start_agent, heals_after_s=(0.0, 5.0, None)),
    "agent, SIGTERM": Fault(stop_agent, start_agent),
    "agent and sentinel": Fault(both(kill_sentinel, kill_agent), start_agent, heals_after_s=(0.0,)),
    "agent and libvirtd": Fault(
        both(kill_libvirtd, kill_agent), in_turn(start_libvirtd, start_agent), libvirt_answers=False
    ),
    "api": Fault(kill_api, start_api),
    "api, SIGTERM": Fault(stop_api, start_api),
    "api and broker": Fault(both(kill_broker, kill_api), in_turn(start_broker, start_api)),
    "broker": Fault(kill_broker, start_broker),
    "broker, hanging": Fault(stall_broker, wake_broker, heals_after_s=(2.0, 8.0)),
    "glance": Fault(kill_glance, start_glance),
    "glance, hanging": Fault(stall_glance, wake_glance, heals_after_s=(2.0, 8.0)),
    "libvirtd": Fault(kill_libvirtd, start_libvirtd, libvirt_answers=False),
    "qemu": Fault(
        kill_qemu, start_guest, ("backup", "overlay"), (0.0,), ("backup", "rebuild"), True
    ),
    "qemu-nbd": Fault(kill_qemu_nbd, nothing, ("overlay", "offline"), (0.0,), ()),
    "sentinel": Fault(kill_sentinel, nothing, heals_after_s=(0.0,)),
}


def _kill(process: Process) -> bool:
    runs = process.pid is not None
    process.kill()
    return runs


def _stop(process: Process) -> bool:
    runs = process.pid is not None
    process.signal(signal.SIGTERM)
    wait_for(lambda: process.pid is None, f"the end of {process.name}", _DRAIN_S)
    return runs


def _signal_group(pid: int | None, number: signal.Signals) -> bool:
    if pid is not None:
        os.killpg(pid, number)
    return pid is not None


def _kill_children_of_the_agent(cloud: Cloud, words: str) -> bool:
    agent, hit = cloud.agent.pid, False
    for pid, command in _processes():
        if words in command and _parent_of(pid) == agent is not None:
            os.kill(pid, signal.SIGKILL)
            hit = True
    return hit


def _processes() -> list[tuple[int, str]]:
    """Return every process and its command line, words parted by NULs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append((int(path.parent.name), path.read_bytes().decode(errors="replace")))
        except OSError:
            continue  # it ended while we looked
    return found


def _parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().split("\nPPid:")[1].split()[0])
    except (OSError, IndexError):
        return None


def serving(words: str) -> list[int]:
    """Return the qemu-nbd processes with these words in their command lines."""
    return [pid for pid, command in _processes() if "qemu-nbd" in command and words in command]
