# SPDX-License-Identifier: Apache-2.0
"""Discovery, microversions, request ids and what nobody may do without a name."""

from __future__ import annotations

import uuid

import pytest
import sqlalchemy
from oslo_db import exception as db_errors

from api_service import middleware
from api_service.microversions import MAXIMUM
from common.reports import InstanceRecord
from tests.api.clouds import Cloud

BOTH = ("OpenStack-API-Version", "X-OpenStack-Nova-API-Version")


def test_the_root_lists_both_versions_without_a_token(cloud: Cloud) -> None:
    versions = cloud.http.simulate_get("/").json["versions"]
    assert [version["id"] for version in versions] == ["v2.0", "v2.1"]
    assert [version["status"] for version in versions] == ["SUPPORTED", "CURRENT"]
    assert (versions[1]["min_version"], versions[1]["version"]) == ("2.1", str(MAXIMUM))


def test_each_self_link_leads_to_a_document_with_the_same_self_link(cloud: Cloud) -> None:
    """Clients fetch the links and insist on it."""
    for version in cloud.http.simulate_get("/").json["versions"]:
        (link,) = [link["href"] for link in version["links"] if link["rel"] == "self"]
        path = link.removeprefix("http://falconframework.org")
        reply = cloud.http.simulate_get(path)
        assert reply.status_code == 200
        found = reply.json["version"]
        assert link in [one["href"] for one in found["links"] if one["rel"] == "self"]
        assert found["id"] == version["id"]


@pytest.mark.parametrize("path", ["/v2.1", "/v2.1/", "/v2/", "/healthcheck"])
def test_what_clients_read_before_they_log_in_needs_no_token(cloud: Cloud, path: str) -> None:
    assert cloud.http.simulate_get(path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v2.1/servers", "/v2.1/servers/x", "/v2.1/flavors", "/v1/jobs", "/v2.1/os-services"]
)
@pytest.mark.parametrize("token", [None, "", ":p-demo"])
def test_everything_else_needs_one(cloud: Cloud, path: str, token: str | None) -> None:
    reply = cloud.get(path, token)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"]
    assert reply.json


@pytest.mark.parametrize("version", ["2.1", "2.45", str(MAXIMUM)])
def test_a_reply_names_its_version_for_old_and_new_clients(cloud: Cloud, version: str) -> None:
    reply = cloud.get("/v2.1/servers", version=version)
    assert reply.headers["openstack-api-version"] == f"compute {version}"
    assert reply.headers["x-openstack-nova-api-version"] == version
    assert {one.strip() for one in reply.headers["vary"].split(",")} >= set(BOTH)


def test_the_old_api_is_announced_as_what_it_is(cloud: Cloud) -> None:
    """It knows no microversions: nothing is asked, nothing is said, as in Nova."""
    reply = cloud.http.simulate_get("/v2/", headers={"OpenStack-API-Version": "compute 2.9999"})
    assert reply.status_code == 200
    (media_type,) = reply.json["version"]["media-types"]
    assert media_type["type"].endswith("compute+json;version=2")
    assert not {one.lower() for one in BOTH} & {name.lower() for name in reply.headers}


def test_each_of_the_two_headers_is_enough(cloud: Cloud) -> None:
    """Tempest sends only the old one, and none at all for 2.1."""
    for given, expected in (
        ({"X-OpenStack-Nova-API-Version": "2.60"}, "2.60"),
        ({"OpenStack-API-Version": "compute 2.60"}, "2.60"),
        ({"OpenStack-API-Version": "compute latest"}, str(MAXIMUM)),
        ({}, "2.1"),
    ):
        reply = cloud.http.simulate_get(
            "/v2.1/servers", headers=given | {"X-Auth-Token": "demo:p-demo"}
        )
        assert reply.headers["x-openstack-nova-api-version"] == expected


def test_an_unknown_version_is_406_with_what_is_known(cloud: Cloud) -> None:
    reply = cloud.get("/v2.1/servers", version="2.9999")
    assert reply.status_code == 406
    (fault,) = reply.json.values()
    assert fault["code"] == 406
    assert "2.1" in fault["message"]
    assert str(MAXIMUM) in fault["message"]
    assert {one.strip() for one in reply.headers["vary"].split(",")} >= set(BOTH)


def test_a_malformed_version_is_400(cloud: Cloud) -> None:
    reply = cloud.get("/v2.1/servers", version="banana")
    assert reply.status_code == 400
    assert "banana" in reply.json["badRequest"]["message"]


def test_replies_carry_the_request_id_under_both_names(cloud: Cloud) -> None:
    """Also the failing ones: that is when it is asked for."""
    for token in ("demo:p-demo", None):
        reply = cloud.get("/v2.1/servers", token)
        assert reply.headers["x-openstack-request-id"].startswith("req-")
        assert reply.headers["x-compute-request-id"] == reply.headers["x-openstack-request-id"]


def test_every_request_has_an_id_of_its_own(cloud: Cloud) -> None:
    ids = {cloud.get("/v2.1/servers").headers["x-openstack-request-id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v2.1/servers"),
        ("PUT", "/v2.1/flavors"),
        ("GET", "/v2.1/servers/x/action"),
        ("HEAD", "/v2.1/servers"),
        ("GET", "/v2.1/nothing-here"),
        ("GET", "/nothing"),
    ],
)
def test_a_wrong_method_or_route_is_404_as_in_nova(cloud: Cloud, method: str, path: str) -> None:
    reply = cloud.http.simulate_request(method, path, headers={"X-Auth-Token": "demo:p-demo"})
    assert reply.status_code == 404


def test_options_is_answered(cloud: Cloud) -> None:
    reply = cloud.http.simulate_options("/v2.1/servers", headers={"X-Auth-Token": "demo:p-demo"})
    assert reply.status_code == 200


def test_a_defect_of_ours_is_a_500_that_tells_nothing(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boom(*_: object) -> None:
        raise RuntimeError("/var/lib/secret")

    monkeypatch.setattr(cloud.inventory.__class__, "instance", boom)
    reply = cloud.get(f"/v2.1/servers/{instance.uuid}")
    assert reply.status_code == 500
    assert reply.json["computeFault"]["code"] == 500
    assert "secret" not in reply.text
    assert "RuntimeError" not in reply.text


def test_a_database_that_is_away_is_a_503_that_tells_nothing(
    cloud: Cloud, instance: InstanceRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (db_errors.DBConnectionError, sqlalchemy.exc.TimeoutError):

        def away(*_: object, error: type[Exception] = error) -> None:
            raise error("SELECT secret FROM db.example.org")

        monkeypatch.setattr(cloud.inventory.__class__, "instance", away)
        reply = cloud.get(f"/v2.1/servers/{instance.uuid}")
        assert reply.status_code == 503
        assert reply.headers["retry-after"]
        assert "secret" not in reply.text


@pytest.mark.parametrize("token", ["de\x1bmo:p-demo", "demo:p\x0bx", "\x85:p"])
def test_a_name_that_would_spoil_the_log_is_none(cloud: Cloud, token: str) -> None:
    assert cloud.get("/v2.1/servers", token).status_code == 401


@pytest.mark.parametrize("given", ["req-\x1b[31m", "req- ERROR gone", "req-" + "a" * 61, "x"])
def test_a_request_id_that_would_spoil_the_log_is_not_taken(
    given: str,
) -> None:
    assert not middleware._is_request_id(given)
    assert middleware._is_request_id(f"req-{uuid.uuid4()}")


def test_the_health_page_says_which_backend_is_down(cloud: Cloud) -> None:
    def down() -> None:
        raise ConnectionError("amqp://guest:guest@broker")

    cloud.health["broker"] = down
    reply = cloud.http.simulate_get("/healthcheck")
    assert reply.json["backends"]["database"] == "ok"
    assert reply.json["backends"]["broker"] != "ok"
    assert reply.json["healthy"] is False
    assert "guest" not in reply.text
    assert reply.status_code == 200, "jobs wait in the ledger: this API still serves"


def test_an_api_without_its_database_is_taken_out_of_service(cloud: Cloud) -> None:
    def down() -> None:
        raise ConnectionError("no database")

    cloud.health["database"] = down
    assert cloud.http.simulate_get("/healthcheck").status_code == 503
