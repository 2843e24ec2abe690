# SPDX-License-Identifier: Apache-2.0
"""An agent that dies in an upload loses nothing but time, as long as the frozen view stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.functional.snapshots import (
    ADMIN,
    Asked,
    ask,
    ask_slowly,
    leftovers,
    log_lines,
    wait_for,
)
from tests.functional.test_snapshot import assert_equal_to, assert_sound
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest
from tools.stack.records import newest_record

Options = Callable[..., None]
NewGuest = Callable[..., Guest]


def kill_in_the_upload(cloud: Cloud, guest: Guest, **options: str) -> Asked:
    """Ask for a snapshot and kill the agent with half of it on its way."""
    asked = ask_slowly(cloud, guest, **options)
    wait_for(lambda: asked.job()["bytes_done"] > 0, "bytes on their way")
    cloud.agent.kill()
    return asked


def limited_to_40(cloud: Cloud, asked: Asked) -> list[str]:
    """Return where the log says that the job got a limit of 40 MB/s while it ran."""
    return log_lines(cloud, "n-cpu.log", asked.job()["id"], "may read 40 MB/s")


@pytest.mark.parametrize("method", ["backup", "overlay"])
def test_the_snapshot_of_a_running_guest_goes_on_and_is_of_the_same_instant(
    cloud: Cloud, running_guest: Guest, agent_options: Options, tmp_path: Path, method: str
) -> None:
    agent_options(f"method = {method}")
    asked = kill_in_the_upload(cloud, running_guest)
    running_guest.console.wait_for_beats(2)
    at_the_kill = running_guest.console.beats[-1][2]
    cloud.start_agent()
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    assert job["image_id"] == asked.image_id
    assert log_lines(cloud, "n-cpu.log", asked.image_id, "outlived the agent")
    assert newest_record(assert_sound(asked, tmp_path)) <= at_the_kill
    blocks = cloud.libvirtd.virsh("domblklist", running_guest.name).split()
    assert str(running_guest.disk) in blocks
    assert running_guest.state() == "running"
    assert leftovers(cloud) == []


def test_the_snapshot_of_a_guest_that_is_off_goes_on(
    cloud: Cloud, new_guest: NewGuest, tmp_path: Path
) -> None:
    guest = new_guest(start=False)
    asked = ask_slowly(cloud, guest)
    wait_for(lambda: asked.job()["bytes_done"] > 0, "bytes on their way")
    url = f"{cloud.api_url}/v1/jobs/{asked.job()['id']}"
    requests.patch(url, json={"bandwidth_limit": 40}, headers=ADMIN, timeout=10).raise_for_status()
    wait_for(lambda: limited_to_40(cloud, asked), "the limit")
    cloud.agent.kill()
    cloud.start_agent()
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    assert len(limited_to_40(cloud, asked)) == 2, "the next agent obeys it, too"
    assert_sound(asked, tmp_path)
    assert_equal_to(guest.disk, asked, tmp_path)
    assert leftovers(cloud) == []


def test_a_disk_that_was_written_to_meanwhile_is_another_instant(
    cloud: Cloud, new_guest: NewGuest
) -> None:
    guest = new_guest(start=False)
    asked = kill_in_the_upload(cloud, guest)
    guest.start()
    guest.shut_down()
    cloud.start_agent()
    job = asked.ended()
    assert (job["state"], job["reason_code"]) == ("error", "interrupted")
    assert asked.image() is None


def test_a_backup_job_that_ended_meanwhile_ends_the_snapshot_with_its_reason(
    cloud: Cloud, running_guest: Guest
) -> None:
    asked = kill_in_the_upload(cloud, running_guest)
    cloud.libvirtd.virsh("domjobabort", running_guest.name)
    cloud.start_agent()
    job = asked.ended()
    assert (job["state"], job["reason_code"]) == ("error", "interrupted")
    assert asked.image() is None
    assert running_guest.state() == "running"
    assert leftovers(cloud) == []
    assert ask(cloud, running_guest).ended()["state"] == "done"


def test_an_increment_goes_on_and_the_chain_with_it(
    cloud: Cloud, new_guest: NewGuest, agent_options: Options
) -> None:
    agent_options("checkpoints = true")
    guest = new_guest()
    wish = {"stillframe:incremental": "true"}
    assert ask(cloud, guest, **wish).ended()["state"] == "done"
    asked = kill_in_the_upload(cloud, guest, **wish, **{"stillframe:bandwidth_limit": "1"})
    cloud.start_agent()
    image = asked.ended()["images"][0]
    assert image["chain_length"] == 1
    assert ask(cloud, guest, **wish).ended()["images"][0]["parent_image_id"] == image["image_id"]


def test_a_cancel_reaches_a_snapshot_that_goes_on(cloud: Cloud, running_guest: Guest) -> None:
    asked = kill_in_the_upload(cloud, running_guest, **{"stillframe:bandwidth_limit": "1"})
    cloud.start_agent()
    wait_for(lambda: log_lines(cloud, "n-cpu.log", asked.image_id, "outlived the agent"), "it")
    requests.delete(f"{cloud.api_url}/v1/jobs/{asked.job()['id']}", headers=ADMIN, timeout=10)
    assert asked.ended()["state"] == "cancelled"
    wait_for(lambda: asked.image() is None, "the image to go")
    assert leftovers(cloud) == []
