# SPDX-License-Identifier: Apache-2.0
"""Servers that are asked for, made by a played agent, and deleted."""

from __future__ import annotations

from typing import Any

from common.reports import Flavor, InstanceRecord
from common.states import JobKind, PowerState
from tests.api import agents as agent_says
from tests.api.clouds import Cloud, headers

DEMO, ADMIN, OTHER = "demo:p-demo", "admin:ops", "eve:p-other"
SMALL = Flavor(name="small", vcpus=1, memory_mib=1024, disk_gib=2)


def message_of(reply: Any) -> str:
    """Return the sentence of a fault, whatever it is called."""
    (fault,) = reply.json.values()
    message: str = fault["message"]
    return message


def wish(image: str, **more: Any) -> dict[str, Any]:
    server = {"name": "new", "imageRef": image, "flavorRef": "small", "networks": "none"}
    return {"server": {name: value for name, value in (server | more).items() if value is not None}}


def post(cloud: Cloud, body: Any, who: str = DEMO, version: str = "2.96") -> Any:
    return cloud.http.simulate_post("/v2.1/servers", json=body, headers=headers(who, version))


def delete(cloud: Cloud, server_id: str, who: str = DEMO) -> Any:
    url = f"/v2.1/servers/{server_id}"
    return cloud.http.simulate_delete(url, headers=headers(who, "2.96"))


def made(cloud: Cloud, image: str, **more: Any) -> str:
    """Return the id of a server that was asked for."""
    reply = post(cloud, wish(image, **more))
    assert reply.status_code == 202, reply.text
    server_id: str = reply.json["server"]["id"]
    return server_id


def accept(cloud: Cloud, kind: JobKind) -> dict[str, Any]:
    """Take the next cast as an agent does; return it."""
    cast = cloud.casts.next()
    assert cast["method"] == f"{kind}_instance"
    report = agent_says.accepted(
        cast["job_id"], cast["instance"]["uuid"], cast.get("image_id", ""), kind=kind
    )
    cloud.report("job_accepted", report)
    return cast


def finish(cloud: Cloud, cast: dict[str, Any], kind: JobKind, **changes: Any) -> None:
    report = agent_says.finished(
        *(cast["job_id"], cast["instance"]["uuid"], cast.get("image_id", "")),
        **{"kind": kind, "size_bytes": None, "sha512": None, "capture": None} | changes,
    )
    cloud.report("job_finished", report)


def launched(cloud: Cloud, image: str, **more: Any) -> InstanceRecord:
    """Return a server that was asked for, made and announced."""
    server_id = made(cloud, image, **more)
    cast = accept(cloud, JobKind.CREATE)
    record = agent_says.instance(uuid=server_id, flavor=SMALL, image_ref=image, name="new")
    cloud.announce(record)
    finish(cloud, cast, JobKind.CREATE, power_state=PowerState.RUNNING)
    return record


def states(cloud: Cloud, server_id: str) -> tuple[str, str | None]:
    server = cloud.server(server_id)
    return server["status"], server["OS-EXT-STS:task_state"]
