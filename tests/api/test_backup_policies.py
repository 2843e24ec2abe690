# SPDX-License-Identifier: Apache-2.0
"""`/v1/policies`: made, seen, changed and deleted; by whom, and what is refused."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from api_service.policy_parts import PolicyLimits
from common.reports import InstanceRecord
from tests.api.clouds import Cloud
from tests.api.policy_days import MEMBER, POLICIES, Clock, Days, wish

ADMIN = "admin:ops"


@pytest.fixture
def days(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Days:
    return Days(cloud, Clock(monkeypatch))


@pytest.fixture
def instance(days: Days) -> InstanceRecord:
    return days.add_instance()


def refused(reply: Any, status: int = 400) -> str:
    assert reply.status_code == status, reply.text
    (fault,) = reply.json.values()
    message: str = fault["message"]
    return message


def test_a_policy_is_as_it_was_made_with_the_rest_as_documented(days: Days) -> None:
    made = days.make()
    assert days.ask("GET", f"{POLICIES}/{made['id']}").json["policy"] == made
    assert {name: made[name] for name in wish()} == {
        **wish(),
        "schedule": {"cron": "0 2 * * *", "time_zone": "UTC"},
    }
    for name, value in {
        "retention": None,
        "incremental": False,
        "full_every": None,
        "freeze": None,
        "verify": False,
        "missed_runs": "catch_up",
        "jitter_s": 0,
        "enabled": True,
        "project_id": "p-demo",
        "user_id": "demo",
        "next_due_at": "2026-03-03T02:00:00Z",
    }.items():
        assert made[name] == value, name


def test_everything_can_be_said_and_is_kept(days: Days, instance: InstanceRecord) -> None:
    said = {
        "name": "all of it",
        "schedule": {"cron": "30 3 * * MON-FRI", "time_zone": "Europe/Berlin"},
        "instances": {"ids": [instance.uuid]},
        "retention": {"last": 3, "daily": 7, "yearly": 1},
        "incremental": True,
        "full_every": 7,
        "freeze": "auto",
        "verify": False,
        "missed_runs": "skip",
        "jitter_s": 600,
        "enabled": False,
    }
    made = days.make(**said)
    assert {name: made[name] for name in said} == said
    assert made["next_due_at"] is None, "it is disabled"
    put = days.ask("PUT", f"{POLICIES}/{made['id']}", {"policy": said | {"enabled": True}})
    assert put.json["policy"]["next_due_at"] == "2026-03-03T02:30:00Z"


def test_a_change_leaves_the_rest_and_a_replacement_does_not(days: Days) -> None:
    made = days.make(retention={"last": 2}, jitter_s=60)
    url = f"{POLICIES}/{made['id']}"
    days.clock.advance(hours=1)
    changed = days.ask("PATCH", url, {"policy": {"name": "weekly", "freeze": "auto"}})
    assert changed.status_code == 200
    assert changed.json["policy"] == made | {
        "name": "weekly",
        "freeze": "auto",
        "updated_at": "2026-03-02T13:00:00Z",
    }
    replaced = days.ask("PUT", url, {"policy": wish(name="new")}).json["policy"]
    assert (replaced["name"], replaced["retention"], replaced["jitter_s"]) == ("new", None, 0)
    assert days.ask("PATCH", url, {"policy": {"retention": None}}).status_code == 200


def test_an_instance_that_is_gone_keeps_nobody_from_changing_something_else(
    days: Days, instance: InstanceRecord
) -> None:
    made = days.make(instances={"ids": [instance.uuid]})
    days.instances.clear()
    days.clock.advance(minutes=1)
    days.announce()
    url = f"{POLICIES}/{made['id']}"
    changed = days.ask("PATCH", url, {"policy": {"enabled": False}})
    assert changed.json["policy"]["enabled"] is False
    anew = {"instances": {"ids": [instance.uuid, str(uuid.uuid4())]}}
    assert instance.uuid in refused(days.ask("PATCH", url, {"policy": anew}))


def test_what_is_deleted_is_gone(days: Days) -> None:
    made = days.make()
    url = f"{POLICIES}/{made['id']}"
    assert days.ask("DELETE", url).status_code == 204
    for method, more in (("GET", ""), ("DELETE", ""), ("POST", "/run"), ("GET", "/runs")):
        assert made["id"] in refused(days.ask(method, url + more), 404)


def test_lists_have_pages_newest_first(days: Days) -> None:
    made = []
    for number in range(5):
        days.clock.advance(seconds=number % 2)  # some at one instant
        made.append(days.make(name=f"n{number}"))
    found: list[Any] = []
    url: str | None = f"{POLICIES}?limit=2"
    while url is not None:
        body = days.ask("GET", url).json
        found += body["policies"]
        link = body.get("policies_links", [{"href": None}])[0]["href"]
        url = link and link.removeprefix("http://falconframework.org")
    assert sorted(one["id"] for one in found) == sorted(one["id"] for one in made)
    assert [one["created_at"] for one in found] == sorted(
        (one["created_at"] for one in made), reverse=True
    )
    assert "marker" in refused(days.ask("GET", f"{POLICIES}?marker={uuid.uuid4()}"))


def test_another_project_finds_nothing(days: Days, instance: InstanceRecord) -> None:
    made = days.make()
    url, theirs = f"{POLICIES}/{made['id']}", "mallory:p-other"
    whole = {"policy": wish()}
    for method, more, body in (
        ("GET", "", None),
        ("PUT", "", whole),
        ("PATCH", "", {"policy": {"enabled": False}}),
        ("DELETE", "", None),
        ("POST", "/run", None),
        ("GET", "/runs", None),
        ("GET", "/retention", None),
    ):
        assert "could not be found" in refused(days.ask(method, url + more, body, theirs), 404)
    assert days.ask("GET", POLICIES, who=theirs).json == {"policies": []}
    assert "marker" in refused(days.ask("GET", f"{POLICIES}?marker={made['id']}", who=theirs))
    assert "get_all_projects" in refused(
        days.ask("GET", f"{POLICIES}?project_id=p-demo", who=theirs), 403
    )
    for query in ("", "?project_id=p-demo"):
        found = days.ask("GET", POLICIES + query, who=ADMIN).json["policies"]
        assert [one["id"] for one in found] == [made["id"]]
    chosen = {"policy": wish(instances={"ids": [instance.uuid]})}
    assert instance.uuid in refused(days.ask("POST", POLICIES, chosen, theirs))


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ({"all": True}, ["db-1", "web-1", "web-2"]),
        ({"name": "^web-"}, ["web-1", "web-2"]),
        ({"name": "1"}, ["db-1", "web-1"]),
        ({"metadata": {"backup": "nightly"}}, ["db-1"]),
        ({"metadata": {"backup": "nightly", "tier": "2"}}, []),
    ],
)
def test_instances_are_chosen_anew_at_each_run(
    days: Days, chosen: dict[str, Any], names: list[str]
) -> None:
    made = days.make(instances=chosen)
    for name in ("web-1", "web-2", "db-1"):
        days.add_instance(name=name)
    theirs = days.add_instance(name="web-3", project_id="p-other")
    database = next(one for one in days.instances if one.name == "db-1")
    said = {"metadata": {"backup": "nightly", "tier": "1"}}
    days.ask("PUT", f"/v2.1/servers/{database.uuid}/metadata", said)
    reply = days.ask("POST", f"{POLICIES}/{made['id']}/run")
    if not names:
        assert "no instance" in refused(reply, 409)
        return
    assert reply.status_code == 202
    called = {one.uuid: one.name for one in days.instances}
    assert sorted(called[run["instance_uuid"]] for run in reply.json["runs"]) == names
    assert theirs.uuid not in {run["instance_uuid"] for run in reply.json["runs"]}


def test_readers_see_and_members_do(
    database_url: str, days: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api_service import middleware

    made = days.make()
    url = f"{POLICIES}/{made['id']}"
    before = middleware.NoIdentity.process_request

    def as_reader(self: Any, request: Any, response: Any) -> None:
        before(self, request, response)
        request.context.caller.roles = ["reader"]

    monkeypatch.setattr(middleware.NoIdentity, "process_request", as_reader)
    days.cloud = Cloud(database_url, days.cloud.images, days.cloud.casts)
    for more in ("", "/runs", "/retention"):
        assert days.ask("GET", url + more).status_code == 200
    for method, more, body in (
        ("POST", "", None),
        ("PATCH", "", {"policy": {"enabled": False}}),
        ("PUT", "", {"policy": wish()}),
        ("DELETE", "", None),
        ("POST", "/run", None),
    ):
        target = POLICIES if (method, more) == ("POST", "") else url + more
        given = {"policy": wish()} if target == POLICIES else body
        assert "stillframe:policies:" in refused(days.ask(method, target, given), 403)
    days.cloud.database.engine.dispose()


def test_a_project_has_no_more_policies_than_it_may(
    database_url: str, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ask at once, through whichever process."""
    clouds = [
        Cloud(database_url, cloud.images, cloud.casts, policy_limits=PolicyLimits(most=3))
        for _ in range(2)
    ]
    start = threading.Barrier(8)

    def ask(number: int) -> int:
        start.wait(10)
        reply = clouds[number % 2].http.simulate_post(
            POLICIES, json={"policy": wish()}, headers={"X-Auth-Token": MEMBER}
        )
        assert reply.status_code == 201 or "may have 3" in reply.text
        return int(reply.status_code)

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(ask, range(8)))
    for one in clouds:
        one.database.engine.dispose()
    assert statuses == [201] * 3 + [403] * 5


def test_a_change_after_the_end_is_404(days: Days) -> None:
    made = days.make()
    policies = days.cloud.policies.book
    record = policies.policies.find(made["id"])
    assert record is not None
    days.ask("DELETE", f"{POLICIES}/{made['id']}")
    assert policies.change(record, {"name": "late"}) is None


def test_the_project_of_a_policy_is_its_makers(days: Days) -> None:
    assert days.make(who=ADMIN)["project_id"] == "ops"
