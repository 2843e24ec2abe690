# SPDX-License-Identifier: Apache-2.0
"""A guest that is rebuilt to and fro between two images of itself, and what must hold after it.

The guest counts its boots on its disk; one image begins at 100, the other at 200. So what it
says when it boots tells, from outside, of which image the disk is that it runs from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from tests.faults.faults import Scene
from tests.functional.conftest import booted
from tests.functional.snapshots import ADMIN, ask, leftovers, post_action, wait_for
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest

#: Fetched within about a second, and seen to run for long enough to be hit in it.
OPTIONS = ("bandwidth_limit = 60", "[rebuild]", "running_time = 1.5")
#: So long may it take, once the job has ended and all is healed, until the guest says so.
_PUT_RIGHT_S = 60.0
_AGES = (1, 2)
_READY = re.compile(r"guest: ready, boot (\d+)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """The guest, and its images by the hundreds of their boots."""

    cloud: Cloud
    guest: Guest
    images: dict[int, str]

    def age(self) -> int:
        """Return which image the disk is of that the guest has last booted from; 0: neither."""
        said = _READY.findall("\n".join(self.guest.console.words))
        return int(said[-1]) // 100 if said else 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A rebuild that was asked for: of which image, and what the guest was until then."""

    rebuilt: Rebuilt
    job_id: str
    old: int
    new: int

    @property
    def scene(self) -> Scene:
        """What faults strike."""
        return Scene(self.rebuilt.cloud, self.rebuilt.guest)

    def job(self) -> dict[str, Any]:
        """Return its job as `/v1/jobs` shows it."""
        url = f"{self.rebuilt.cloud.api_url}/v1/jobs/{self.job_id}"
        job: dict[str, Any] = requests.get(url, headers=ADMIN, timeout=10).json()["job"]
        return job

    def ended(self) -> dict[str, Any]:
        """Wait until its job has ended; return it."""
        wait_for(lambda: self.job()["finished_at"], f"the end of job {self.job_id}")
        return self.job()

    def assert_whole(self, where: str) -> None:
        """The job has ended; the guest runs from one whole disk, and nothing is left."""
        assert_whole(self, where)


@contextlib.contextmanager
def two_images(cloud: Cloud) -> Iterator[Rebuilt]:
    """Boot a guest, make both images of it, and rebuild it once: it runs from the first."""
    with booted(cloud) as guest:
        guest.wait_for_agent()
        images = {age: _image(cloud, guest, age) for age in _AGES}
        rebuilt = Rebuilt(cloud=cloud, guest=guest, images=images)
        asked = ask_for_rebuild(rebuilt, new=_AGES[0], old=_AGES[-1])
        assert asked.ended()["state"] == "done", asked.job()["reason"]
        assert_whole(asked, "before any fault")
        yield rebuilt
    for path in made_beside(guest):
        path.unlink()


def ask_for_rebuild(rebuilt: Rebuilt, *, old: int | None = None, new: int | None = None) -> Asked:
    """Ask for a rebuild to the image that the guest does not run from."""
    old = old or rebuilt.age()
    new = new or next(age for age in _AGES if age != old)
    body = {"rebuild": {"imageRef": rebuilt.images[new]}}
    answer = post_action(rebuilt.cloud, rebuilt.guest, body)
    assert answer.status_code == requests.codes.accepted, answer.text
    query = {"instance_uuid": rebuilt.guest.uuid, "kind": "rebuild"}
    url = f"{rebuilt.cloud.api_url}/v1/jobs"
    jobs = requests.get(url, query, headers=ADMIN, timeout=10).json()["jobs"]
    return Asked(rebuilt=rebuilt, job_id=jobs[0]["id"], old=old, new=new)


def assert_whole(asked: Asked, where: str) -> None:
    """The job has ended with a reason; the guest runs from one whole disk, the one it says."""
    guest, cloud = asked.rebuilt.guest, asked.rebuilt.cloud
    wait_for(
        lambda: guest.state() == "running" and _is_as_it_says(asked),
        f"a guest that runs from the disk of its job's outcome ({where})",
        _PUT_RIGHT_S,
        lambda: _seen(asked),
    )
    job = asked.job()
    assert job["state"] == "done" or (job["reason"] and job["reason_code"]), where
    wait_for(lambda: not (what_is_left(cloud, guest)), f"nothing left ({where})", _PUT_RIGHT_S)
    assert cloud.server(guest)["OS-EXT-STS:task_state"] is None, where
    # What the guest is at now comes with the host's next report.
    wait_for(lambda: cloud.server(guest)["status"] == "ACTIVE", f"ACTIVE ({where})", _PUT_RIGHT_S)
    guest.console.wait_for_beats(20, timeout_s=20)
    guest.console.wait_for_a_record(20)
    _assert_sound(guest, where)


def _is_as_it_says(asked: Asked) -> bool:
    """Tell whether outcome, what the API shows and what the guest says of its disk agree.

    A job that was given up while its agent could not speak may be done after all.
    """
    expected = asked.new if asked.job()["state"] == "done" else asked.old
    rebuilt = asked.rebuilt
    shown = rebuilt.cloud.server(rebuilt.guest).get("image") or {}
    return rebuilt.age() == expected and shown.get("id") == rebuilt.images[expected]


def _seen(asked: Asked) -> dict[str, Any]:
    job, guest = asked.job(), asked.rebuilt.guest
    return {
        "job": (job["state"], job["reason_code"]),
        "age": (asked.old, asked.new, asked.rebuilt.age()),
        "guest": guest.state(),
        "shown": asked.rebuilt.cloud.server(guest).get("image"),
        "words": guest.console.words[-3:],
    }


def made_beside(guest: Guest) -> list[Path]:
    """Return what rebuilds have made beside a guest's disk."""
    return list(guest.disk.parent.glob(f"{guest.disk.name}.stillframe-*"))


def what_is_left(cloud: Cloud, guest: Guest) -> list[str]:
    """Return, in words, whatever a rebuild should not have left of itself."""
    below = _disk_info(guest).get("full-backing-filename")
    left = leftovers(cloud)
    left += [str(path) for path in made_beside(guest) if str(path) != below]
    virsh = cloud.libvirtd.virsh
    if str(guest.disk) not in (disks := virsh("domblklist", guest.name)).split():
        left.append(f"another disk: {disks}")
    if "yes" not in virsh("dominfo", guest.name).split("Persistent:")[1]:
        left.append("a domain that is not persistent")
    left += virsh("checkpoint-list", guest.name, "--name").split()
    return left


def _assert_sound(guest: Guest, where: str) -> None:
    """What lies below the disk is a whole file; the disk itself is being written to."""
    below = _disk_info(guest)["full-backing-filename"]
    command = ["qemu-img", "check", "-q", "-f", "qcow2", below]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (where, done.stderr)


def _disk_info(guest: Guest) -> dict[str, Any]:
    command = ["qemu-img", "info", "-U", "-f", "qcow2", "--output", "json", str(guest.disk)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    info: dict[str, Any] = json.loads(shown.stdout) if shown.returncode == 0 else {}
    return info


def _image(cloud: Cloud, guest: Guest, age: int) -> str:
    """Have the guest say that it has booted so many hundred times; return an image of that."""
    run_in(cloud, guest, f"echo {age * 100} > /data/boots; sync")
    asked = ask(cloud, guest, f"age {age}")
    assert asked.ended()["state"] == "done", asked.job()["reason"]
    return asked.image_id


def run_in(cloud: Cloud, guest: Guest, command: str) -> None:
    """Have the guest agent run a shell command in the guest, to its good end."""

    def ask_agent(execute: str, **about: Any) -> Any:
        asked = json.dumps({"execute": execute, "arguments": about})
        return json.loads(cloud.libvirtd.virsh("qemu-agent-command", guest.name, asked))["return"]

    pid = ask_agent("guest-exec", path="/bin/sh", arg=["-c", command])["pid"]
    ended = wait_for(
        lambda: (found := ask_agent("guest-exec-status", pid=pid))["exited"] and found, command
    )
    assert ended["exitcode"] == 0
