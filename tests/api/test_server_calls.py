# SPDX-License-Identifier: Apache-2.0
"""Other services make and delete servers over RPC, as over REST."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from common.states import JobKind
from tests.api.clouds import Cloud
from tests.api.new_servers import accept, finish, launched, states
from tests.api.test_service_calls import MEMBER, READER, STRANGER, call, code


def create(cloud: Cloud, image: str, who: dict[str, Any] = MEMBER, **more: Any) -> Any:
    named = {"name": "new", "image_id": image, "flavor": "small"}
    return call(cloud, "create_instance", who, **(named | more))


def test_a_server_is_made_once_for_each_job_id(cloud: Cloud, image: str) -> None:
    job_id = str(uuid.uuid4())
    answer = create(cloud, image, job_id=job_id, metadata={"a": "b"}, networks=["lan"])
    assert (answer["error"], answer["job_id"], answer["image_id"]) == (None, job_id, None)
    again = create(cloud, image, job_id=job_id.upper())
    assert again["instance_uuid"] == answer["instance_uuid"]
    cast = cloud.casts.next()
    assert (cast["method"], cast["networks"]) == ("create_instance", ["lan"])
    assert states(cloud, answer["instance_uuid"]) == ("BUILD", "scheduling")
    assert cloud.server(answer["instance_uuid"])["metadata"] == {"a": "b"}
    assert len(cloud.get("/v2.1/servers").json["servers"]) == 1
    assert code(create(cloud, image, STRANGER, job_id=job_id)) == "conflict"


@pytest.mark.parametrize(
    ("who", "more", "why"),
    [
        (READER, {}, "forbidden"),
        (STRANGER, {}, "bad_request"),
        (MEMBER, {"flavor": "huge"}, "bad_request"),
        (MEMBER, {"name": " "}, "bad_request"),
        (MEMBER, {"image_id": "x"}, "malformed_message"),
        (MEMBER, {"metadata": {"a": 1}}, "malformed_message"),
        (MEMBER, {"min_count": 2}, "malformed_message"),
        (MEMBER, {"max_count": 2}, "malformed_message"),
    ],
)
def test_what_rest_refuses_is_refused(
    cloud: Cloud, image: str, who: dict[str, Any], more: dict[str, Any], why: str
) -> None:
    assert code(create(cloud, image, who, **more)) == why
    assert cloud.casts.empty()


def test_a_server_is_deleted_once(cloud: Cloud, image: str) -> None:
    record = launched(cloud, image)
    named = {"instance": {"uuid": record.uuid}}
    assert code(call(cloud, "delete_instance", READER, **named)) == "forbidden"
    assert code(call(cloud, "delete_instance", STRANGER, **named)) == "not_found"
    answer = call(cloud, "delete_instance", **named)
    again = call(cloud, "delete_instance", **named)
    assert (answer["error"], answer["job_id"]) == (None, again["job_id"])
    finish(cloud, accept(cloud, JobKind.DELETE), JobKind.DELETE)
    assert code(call(cloud, "delete_instance", **named)) == "not_found"
