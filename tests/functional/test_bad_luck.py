# SPDX-License-Identifier: Apache-2.0
"""What goes wrong ends in a clear answer or a recorded reason, the guest running, nothing left."""

from __future__ import annotations

import json
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from common import messages
from tests.functional.conftest import python
from tests.functional.snapshots import (
    ADMIN,
    amid_upload,
    ask,
    ask_slowly,
    leftovers,
    log_lines,
    post_action,
    wait_for,
)
from tools.stack.cloud import Cloud, forget_queue_names
from tools.stack.guest import Guest
from tools.stack.prepare import ROOT

CODES = requests.codes


@pytest.fixture
def stopped_agent(cloud: Cloud) -> Iterator[None]:
    cloud.agent.stop()
    yield
    cloud.start_agent()


def images(cloud: Cloud) -> set[str]:
    found = requests.get(f"{cloud.glance.endpoint}/v2/images?limit=500", timeout=10).json()
    return {image["id"] for image in found["images"]}


def cast(cloud: Cloud, method: str, version: str = "1.0", **arguments: Any) -> None:
    """Cast to the agent as another service would, in a process of its own."""
    code = (
        "import json, sys\n"
        "from common import conf, context, rpc\n"
        "settings = conf.load(['--config-file', sys.argv[1]], 'test')\n"
        "message = json.loads(sys.argv[2])\n"
        "client = rpc.Transport(settings).client("
        "topic='stillframe-compute', version=message['version'], timeout_s=10)\n"
        "caller = context.new(user_id='service', project_id='demo')\n"
        "client.cast(caller, message['method'], host=message['host'], **message['arguments'])\n"
    )
    message = {"method": method, "version": version, "host": cloud.host, "arguments": arguments}
    command = [python(), "-c", code, str(cloud.config_file), json.dumps(message)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_a_second_request_meanwhile_is_409_and_leaves_no_image(
    cloud: Cloud, running_guest: Guest
) -> None:
    first = ask_slowly(cloud, running_guest)
    before = images(cloud)
    answer = post_action(cloud, running_guest, {"createImage": {"name": "second"}})
    assert answer.status_code == CODES.conflict
    assert "while it is in task_state" in answer.json()["conflictingRequest"]["message"]
    assert images(cloud) == before
    assert first.ended()["state"] == "done"


def test_an_unknown_instance_is_404(cloud: Cloud) -> None:
    answer = post_action(cloud, str(uuid.uuid4()), {"createImage": {"name": "x"}})
    assert answer.status_code == CODES.not_found
    assert "could not be found" in answer.json()["itemNotFound"]["message"]


def test_a_bad_body_is_400_and_names_the_field(cloud: Cloud, running_guest: Guest) -> None:
    answer = post_action(cloud, running_guest, {"createImage": {"name": ""}})
    assert answer.status_code == CODES.bad_request
    assert "createImage.name" in answer.json()["badRequest"]["message"]


def test_an_agent_that_is_down_is_told_at_once_and_no_image_is_made(
    cloud: Cloud, running_guest: Guest, stopped_agent: None
) -> None:
    def is_down() -> bool:
        services = cloud.get("/v2.1/os-services")["services"]
        return all(one["state"] == "down" for one in services)

    wait_for(is_down, "the agent to be known as down")
    before = images(cloud)
    answer = post_action(cloud, running_guest, {"createImage": {"name": "x"}})
    assert answer.status_code == CODES.conflict
    assert "compute agent" in answer.json()["conflictingRequest"]["message"]
    assert images(cloud) == before
    assert cloud.server(running_guest)["OS-EXT-STS:task_state"] is None


def test_a_guest_without_a_usable_disk_ends_in_a_reason(
    cloud: Cloud, new_guest: Callable[..., Guest]
) -> None:
    guest = new_guest(start=False)
    cloud.libvirtd.virsh("detach-disk", guest.name, "vda", "--config")
    asked = ask(cloud, guest)
    job = asked.ended()
    assert (job["state"], job["reason_code"]) == ("error", "no_usable_disk")
    assert asked.image() is None
    assert leftovers(cloud) == []


def test_glance_refusing_the_record_is_told_and_frees_the_instance(
    cloud: Cloud, running_guest: Guest
) -> None:
    before = images(cloud)
    body = {"createImage": {"name": "x", "metadata": {"os_hidden": "perhaps"}}}
    answer = post_action(cloud, running_guest, body)
    assert CODES.bad_request <= answer.status_code < CODES.server_error
    assert cloud.server(running_guest)["OS-EXT-STS:task_state"] is None
    assert images(cloud) == before


def test_an_image_deleted_meanwhile_cancels_the_job_and_leaves_nothing(
    cloud: Cloud, running_guest: Guest
) -> None:
    asked = amid_upload(cloud, running_guest)
    requests.delete(f"{cloud.glance.endpoint}/v2/images/{asked.image_id}", timeout=10)
    job = asked.ended()
    assert job["state"] in ("cancelled", "done"), "done if it had just ended"
    assert asked.image() is None
    assert running_guest.state() == "running"
    assert leftovers(cloud) == []


def test_glance_killed_in_the_upload_ends_in_a_whole_image_or_none(
    cloud: Cloud, running_guest: Guest
) -> None:
    """Glance itself never frees an image that it was receiving when it was killed."""
    asked = amid_upload(cloud, running_guest)
    cloud.glance.process.kill()
    cloud.glance.start()
    job = asked.ended()
    image = asked.image()
    if job["state"] == "done":
        assert image is not None
        assert image["os_hash_value"] == job["sha512"]
    else:
        assert "image service" in job["reason"]
        assert image is None
    assert running_guest.state() == "running"
    assert leftovers(cloud) == []


def test_a_malformed_cast_is_refused_in_the_log_and_the_agent_goes_on(
    cloud: Cloud, running_guest: Guest
) -> None:
    cast(cloud, "snapshot_instance", instance={"uuid": "no-uuid"}, image_id=7)
    wait_for(
        lambda: log_lines(cloud, "n-cpu.log", "Refused a malformed snapshot_instance"),
        "the refusal",
    )
    assert ask(cloud, running_guest).ended()["state"] == "done"


def test_a_cast_of_an_unknown_rpc_version_ends_in_a_recorded_error(
    cloud: Cloud, running_guest: Guest
) -> None:
    job_id = str(uuid.uuid4())
    request = messages.SnapshotRequest(
        instance=messages.InstanceRef(uuid=running_guest.uuid),
        image_id=str(uuid.uuid4()),
        job_id=job_id,
    )
    cast(cloud, "snapshot_instance", version="9.0", **request.to_wire())

    def recorded() -> dict[str, Any] | None:
        answer = requests.get(f"{cloud.api_url}/v1/jobs/{job_id}", headers=ADMIN, timeout=10)
        return answer.json()["job"] if answer.ok else None

    job = wait_for(recorded, "the recorded refusal")
    assert (job["state"], job["reason_code"]) == ("error", "unsupported_rpc_version")
    assert running_guest.state() == "running"


def test_a_cast_straight_to_the_agent_appears_in_the_api(
    cloud: Cloud, running_guest: Guest
) -> None:
    image_id = str(uuid.uuid4())
    url = f"{cloud.glance.endpoint}/v2/images"
    requests.post(url, json={"id": image_id, "name": "direct", "owner": "demo"}, timeout=10)
    cast(cloud, "snapshot_instance", instance={"uuid": running_guest.uuid}, image_id=image_id)

    def job() -> dict[str, Any] | None:
        query = f"/v1/jobs?instance_uuid={running_guest.uuid}"
        jobs = requests.get(cloud.api_url + query, headers=ADMIN, timeout=10).json()["jobs"]
        return next(
            (one for one in jobs if one["image_id"] == image_id and one["finished_at"]), None
        )

    assert wait_for(job, "the job in the ledger")["state"] == "done"
    assert requests.get(f"{url}/{image_id}", timeout=10).json()["status"] == "active"


def test_libvirtd_restarting_in_the_upload_does_not_matter(
    cloud: Cloud, running_guest: Guest
) -> None:
    asked = amid_upload(cloud, running_guest)
    cloud.libvirtd.restart()
    job = asked.ended()
    assert job["state"] == "done", job["reason"]
    assert running_guest.state() == "running"
    assert leftovers(cloud) == []


def test_sigterm_in_the_upload_lets_it_finish(cloud: Cloud, running_guest: Guest) -> None:
    asked = amid_upload(cloud, running_guest)
    cloud.agent.signal(signal.SIGTERM)
    wait_for(lambda: cloud.agent.pid is None, "the agent's end")
    cloud.start_agent()
    assert asked.ended()["state"] == "done"
    assert leftovers(cloud) == []


def test_a_second_agent_on_the_same_state_refuses_to_start(cloud: Cloud) -> None:
    done = subprocess.run(
        cloud._command("stillframe-compute", logs=False),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "another agent" in done.stderr


def test_an_agent_elsewhere_with_the_same_host_name_refuses_to_start(
    cloud: Cloud, tmp_path: Path
) -> None:
    """Its own machine, state and directories: only the API knows of both."""
    elsewhere = tmp_path / "stillframe.conf"
    settings = cloud.config_file.read_text()
    for option in ("state_path", "instances_directory"):
        settings = settings.replace(f"{option} = {cloud.directory}", f"{option} = {tmp_path}")
    elsewhere.write_text(settings)
    done = subprocess.run(
        [str(cloud._bin / "stillframe-compute"), "--config-file", str(elsewhere)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    forget_queue_names(tmp_path / "state")
    assert done.returncode == 1
    assert f"another compute agent reports as host {cloud.host}" in done.stderr
    assert cloud.agent.pid is not None
