# SPDX-License-Identifier: Apache-2.0
"""What must hold after a fault, looked at from outside.

virsh, the guest's own records, Glance, the API, directories and processes: never
our own journal or database.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from pathlib import Path

from tests.faults import faults
from tests.functional.snapshots import Asked, leftovers, log_lines, wait_for
from tests.functional.test_snapshot import assert_sound
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest
from tools.stack.records import newest_record

_ENDED = ("done", "error", "cancelled")
#: qemu-img check: nothing wrong, or clusters that nobody uses (a QEMU that was killed).
_SOUND = (0, 3)
#: So long may it take until nothing is left, once the job has ended and all is healed.
_PUT_RIGHT_S = 30.0
_LOOK_S = 0.2
_FREEZE_STATUS = json.dumps({"execute": "guest-fsfreeze-status"})


def assert_runs(guest: Guest, where: str) -> None:
    """The guest runs, thawed, within its budget."""
    wait_for(lambda: guest.state() == "running", f"a running guest ({where})", faults.BUDGET_S)


def assert_whole_or_gone(asked: Asked, directory: Path, where: str) -> None:
    """The job has ended; its image is active and bit-true, or gone (the reaper takes a while)."""
    job = asked.job()
    assert job["state"] in _ENDED, where
    assert job["state"] == "done" or job["reason"], where
    if job["state"] != "done":
        # One that was given up while its agent could not speak may be done after all.
        wait_for(lambda: asked.image() is None or is_done(asked), f"the image to go ({where})", 60)
        if not is_done(asked):
            return
        job = asked.job()
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


def is_done(asked: Asked) -> bool:
    """Tell whether the job has come to a good end."""
    return bool(asked.job()["state"] == "done")


def assert_untouched(cloud: Cloud, guest: Guest, where: str) -> None:
    """The guest is on its own disk, persistent, free, and nothing of ours is left.

    An agent that has only just been started again may still be putting things right.
    """
    assert cloud.server(guest)["OS-EXT-STS:task_state"] is None, where
    deadline = time.monotonic() + _PUT_RIGHT_S
    while left := what_is_left(cloud, guest):
        assert time.monotonic() < deadline, f"{left} ({where})"
        time.sleep(_LOOK_S)
    if guest.state() == "running":
        _assert_thawed(cloud, guest, where)
        guest.console.wait_for_beats(20, timeout_s=20)


def what_is_left(cloud: Cloud, guest: Guest) -> list[str]:
    """Return, in words, whatever a snapshot should not have left of itself."""
    virsh = cloud.libvirtd.virsh
    left = leftovers(cloud)
    left += [
        f"checkpoint {name}" for name in virsh("checkpoint-list", guest.name, "--name").split()
    ]
    left += [f"qemu-nbd {pid}" for pid in faults.serving(str(cloud.directory))]
    left += [str(path) for path in guest.disk.parent.iterdir() if _is_of_a_snapshot(path)]
    if str(guest.disk) not in (disks := virsh("domblklist", guest.name)).split():
        left.append(f"another disk: {disks}")
    if "yes" not in virsh("dominfo", guest.name).split("Persistent:")[1]:
        left.append("a domain that is not persistent")
    if guest.state() == "running" and (job := virsh("blockjob", guest.name, "vda").strip()):
        left.append(job)
    return left


def _is_of_a_snapshot(path: Path) -> bool:
    """Tell what a snapshot makes beside a disk from the base that another guest's rebuild made."""
    return ".stillframe-" in path.name and ".stillframe-base-" not in path.name


def assert_disk_is_sound(guest: Guest, where: str) -> None:
    """What is left of the disk of a guest that is off is a whole file on its own base."""
    command = ["qemu-img", "check", "-q", "-f", "qcow2", str(guest.disk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in _SOUND, (where, done.stderr)
    command = ["qemu-img", "info", "-f", "qcow2", "--output", "json", str(guest.disk)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(shown.stdout)["backing-filename"].endswith("disk.qcow2"), where


def assert_told(asked: Asked, where: str) -> None:
    """Both logs tell of it."""
    assert log_lines(asked.cloud, "n-cpu.log", asked.job()["id"]), where
    assert log_lines(asked.cloud, "n-api.log", asked.image_id), where


def _assert_thawed(cloud: Cloud, guest: Guest, where: str) -> None:
    """Ask the guest's own agent; it may still be starting, and then nothing is frozen."""
    said = cloud.libvirtd.virsh("qemu-agent-command", guest.name, _FREEZE_STATUS, check=False)
    assert "frozen" not in said, where
