# SPDX-License-Identifier: Apache-2.0
"""`DELETE /servers/{id}`: whatever the server is at, and whose it is."""

from __future__ import annotations

import datetime as dt

from api_service.store.job_lists import JobQuery
from common.reports import InstanceRecord
from common.states import JobKind, JobState
from tests.api.clouds import Cloud
from tests.api.new_servers import (
    ADMIN,
    DEMO,
    OTHER,
    accept,
    delete,
    finish,
    launched,
    made,
    message_of,
    states,
)


def test_a_launched_one_is_ended_by_its_agent(cloud: Cloud, image: str) -> None:
    record = launched(cloud, image)
    assert delete(cloud, record.uuid).status_code == 204
    assert states(cloud, record.uuid) == ("ACTIVE", "deleting")
    assert delete(cloud, record.uuid).status_code == 204, "asked again, it is on its way"
    cast = accept(cloud, JobKind.DELETE)
    finish(cloud, cast, JobKind.DELETE)
    assert cloud.get(f"/v2.1/servers/{record.uuid}").status_code == 404
    assert delete(cloud, record.uuid).status_code == 404
    assert cloud.casts.empty()
    # A report from before does not raise the dead.
    before = (dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)).timestamp()
    cloud.announce(record, at=before)
    assert cloud.get(f"/v2.1/servers/{record.uuid}").status_code == 404


def test_one_that_nobody_has_accepted_yet_is_gone_at_once(cloud: Cloud, image: str) -> None:
    server_id = made(cloud, image)
    create = cloud.casts.next()
    assert delete(cloud, server_id).status_code == 204
    assert cloud.get(f"/v2.1/servers/{server_id}").status_code == 404
    # The cast may yet arrive: its agent hears that it is not wanted.
    cancel = cloud.casts.next()
    assert (cancel["method"], cancel["job_id"]) == ("cancel_job", create["job_id"])
    assert cloud.casts.empty()


def test_one_that_is_being_built_is_cancelled_and_deleted(cloud: Cloud, image: str) -> None:
    server_id = made(cloud, image)
    create = accept(cloud, JobKind.CREATE)
    assert delete(cloud, server_id).status_code == 204
    assert states(cloud, server_id) == ("BUILD", "deleting")
    assert cloud.casts.next()["method"] == "cancel_job"
    cast = accept(cloud, JobKind.DELETE)
    cancelled = {"state": JobState.CANCELLED, "reason": "the job was cancelled"}
    finish(cloud, create, JobKind.CREATE, **cancelled)
    assert states(cloud, server_id) == ("BUILD", "deleting"), "the deletion holds it"
    finish(cloud, cast, JobKind.DELETE)
    assert cloud.get(f"/v2.1/servers/{server_id}").status_code == 404


def test_what_is_done_to_it_does_not_keep_it(cloud: Cloud, image: str) -> None:
    record = launched(cloud, image)
    assert cloud.snapshot(record.uuid).status_code == 202
    snapshot = cloud.casts.next()
    assert delete(cloud, record.uuid).status_code == 204
    assert cloud.casts.next()["method"] == "cancel_job"
    accept(cloud, JobKind.DELETE)
    assert cloud.ledger.find(snapshot["job_id"]).state is JobState.CANCELLED


def test_a_locked_one_stays(cloud: Cloud, image: str) -> None:
    record = launched(cloud, image)
    cloud.act(record.uuid, {"lock": None})
    reply = delete(cloud, record.uuid)
    assert (reply.status_code, "is locked" in message_of(reply)) == (409, True)
    assert delete(cloud, record.uuid, ADMIN).status_code == 204


def test_one_that_was_not_made_here_stays(cloud: Cloud, instance: InstanceRecord) -> None:
    for who in (DEMO, ADMIN):
        reply = delete(cloud, instance.uuid, who)
        assert (reply.status_code, "not made through this API" in message_of(reply)) == (403, True)
    assert delete(cloud, instance.uuid, OTHER).status_code == 404


def test_without_its_agent_it_stays(cloud: Cloud, image: str) -> None:
    record = launched(cloud, image)
    cloud.agents._down_after = dt.timedelta(seconds=-1)
    assert delete(cloud, record.uuid).status_code == 409
    assert states(cloud, record.uuid) == ("ACTIVE", None)


def test_a_deletion_that_failed_lets_it_go(cloud: Cloud, image: str) -> None:
    record = launched(cloud, image)
    delete(cloud, record.uuid)
    cast = accept(cloud, JobKind.DELETE)
    finish(cloud, cast, JobKind.DELETE, state=JobState.ERROR, reason="it is stuck")
    assert states(cloud, record.uuid) == ("ACTIVE", None)
    assert delete(cloud, record.uuid).status_code == 204


def test_both_are_told_as_novas_actions(cloud: Cloud, image: str) -> None:
    record = launched(cloud, image)
    delete(cloud, record.uuid)
    actions = cloud.get(f"/v2.1/servers/{record.uuid}/os-instance-actions").json["instanceActions"]
    assert [action["action"] for action in actions] == ["delete", "create"]
    kinds = [job.kind for job in cloud.ledger.jobs(JobQuery(instance_uuid=record.uuid))]
    assert kinds == [JobKind.DELETE, JobKind.CREATE]
