# SPDX-License-Identifier: Apache-2.0
"""`auth_strategy = keystone`: the real keystonemiddleware, asking a Keystone that is played."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import falcon
import pytest
from falcon import testing

from api_service.app import behind_proxy, make_application, make_identity
from api_service.identity import KeystoneIdentity, confirmed
from common.context import RequestContext
from common.errors import ConfigurationError
from common.reports import InstanceRecord
from tests.api.clouds import Cloud, RecordedCasts
from tests.api.played_keystone import (
    OTHER,
    OWN,
    PlayedKeystone,
    ask,
    register_keystone,
    running,
    settings,
)
from tools.stack.process import free_port


@pytest.fixture(scope="module")
def keystone() -> Iterator[str]:
    """URL of a Keystone."""
    with running() as url:
        yield url


@pytest.fixture
def http(cloud: Cloud, keystone: str) -> testing.TestClient:
    """The API, behind Keystone."""
    return testing.TestClient(
        make_application(cloud._services(), make_identity(settings(keystone)))
    )


def test_a_token_of_the_project_is_let_in(
    http: testing.TestClient, instance: InstanceRecord
) -> None:
    (server,) = ask(http, f"member@{OWN}").json["servers"]
    assert server["id"] == instance.uuid
    assert ask(http, f"member@{OTHER}").json["servers"] == []


@pytest.mark.parametrize("bad", [None, "forged", f"member@{OWN}!", "demo:p-demo", "admin:ops"])
def test_without_a_good_token_it_is_401_as_nova_says_it(
    http: testing.TestClient, keystone: str, bad: str | None
) -> None:
    reply = ask(http, bad)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == f'Keystone uri="{keystone}"'
    assert reply.json == {
        "error": {
            "code": 401,
            "title": "Unauthorized",
            "message": "The request you have made requires authentication.",
        }
    }
    assert reply.headers["x-openstack-request-id"].startswith("req-")


@pytest.mark.parametrize("path", ["/", "/v2", "/v2.1", "/v2.1/", "/healthcheck"])
def test_versions_and_health_need_no_token(http: testing.TestClient, path: str) -> None:
    assert ask(http, None, path).status_code == 200


def test_headers_of_the_caller_make_nobody_an_administrator(
    http: testing.TestClient, instance: InstanceRecord
) -> None:
    """They are what keystonemiddleware itself writes."""
    forged = {
        "X_Roles": "admin",
        "X_Project_Id": OWN,
        "X_Identity_Status": "Confirmed",
        "X_Service_Roles": "admin,service",
        "X_Service_Identity_Status": "Confirmed",
    }
    assert ask(http, None, **forged).status_code == 401
    assert ask(http, f"member@{OTHER}", **forged).json["servers"] == []
    assert ask(http, f"member@{OTHER}", "/v2.1/os-services", **forged).status_code == 403


@pytest.mark.parametrize("scope", ["system", "domain", "unscoped"])
def test_a_token_of_no_project_sees_nothing(
    http: testing.TestClient, instance: InstanceRecord, scope: str
) -> None:
    """Not even an administrator's: a list without a project would be everybody's."""
    for role in ("admin", "reader"):
        for path in ("/v2.1/servers", f"/v2.1/servers/{instance.uuid}", "/v1/jobs"):
            assert ask(http, f"{role}@{scope}", path).status_code == 403


def test_an_expired_token_is_taken_from_a_service_that_works_on(
    http: testing.TestClient, instance: InstanceRecord
) -> None:
    expired = f"member@{OWN}!"
    assert ask(http, expired).status_code == 401
    reply = ask(http, expired, X_Service_Token="service@service")
    assert [one["id"] for one in reply.json["servers"]] == [instance.uuid]


@pytest.mark.parametrize("not_a_service", [f"member@{OWN}", f"admin@{OWN}", "forged"])
def test_a_service_token_must_be_a_service_s(
    http: testing.TestClient, instance: InstanceRecord, not_a_service: str
) -> None:
    reply = ask(http, f"member@{OWN}!", X_Service_Token=not_a_service)
    assert reply.status_code == 401


def test_keystone_is_asked_once_for_a_token(
    http: testing.TestClient, instance: InstanceRecord
) -> None:
    before = PlayedKeystone.asked
    for _ in range(5):
        assert ask(http, f"member@{OWN}").status_code == 200
    assert PlayedKeystone.asked == before + 1


def test_a_caller_who_asks_again_at_once_is_who_it_was(
    http: testing.TestClient, instance: InstanceRecord
) -> None:
    for _ in range(2):
        for role, project, seen in [("member", OWN, 1), ("member", OTHER, 0), ("admin", OTHER, 0)]:
            reply = ask(http, f"{role}@{project}")
            assert (reply.status_code, len(reply.json["servers"])) == (200, seen)
        assert ask(http, f"admin@{OTHER}", "/v2.1/os-services").status_code == 200
        assert ask(http, f"member@{OTHER}", "/v2.1/os-services").status_code == 403


def test_a_token_that_came_in_another_header_lets_nobody_else_in(http: testing.TestClient) -> None:
    """Keystonemiddleware knows a second name of the header, from Swift."""
    assert ask(http, None, X_Storage_Token=f"member@{OWN}").status_code == 200
    assert ask(http, "").status_code == 401
    assert ask(http, None).status_code == 401


@pytest.mark.parametrize(("lasts_s", "known_s"), [(3600.0, 1.0), (0.5, 0.5)])
def test_a_caller_is_known_for_a_second_and_never_longer_than_its_token_lasts(
    lasts_s: float, known_s: float
) -> None:
    asked: list[str] = []
    expires_at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=lasts_s)

    def check(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        asked.append(environ["HTTP_X_AUTH_TOKEN"])
        environ["keystone.token_info"] = {"token": {"expires_at": expires_at.isoformat()}}
        environ["HTTP_X_PROJECT_ID"] = OWN
        return confirmed(environ, start_response)

    now = 0.0
    identity = KeystoneIdentity(check, cache_s=300, clock=lambda: now)

    def ask_at(second: float) -> int:
        nonlocal now
        now = second
        environ = testing.create_environ(path="/v2.1/servers", headers={"X-Auth-Token": "t"})
        request = falcon.Request(environ)
        request.context.caller = RequestContext()
        identity.process_request(request, falcon.Response())
        assert request.context.caller.project_id == OWN
        return len(asked)

    assert [ask_at(0), ask_at(known_s - 0.1), ask_at(known_s + 0.1)] == [1, 1, 2]


def test_access_rules_of_an_application_credential_hold_for_each_request(
    http: testing.TestClient, instance: InstanceRecord
) -> None:
    restricted = f"member@{OWN}?/v2.1/servers"
    for _ in range(2):
        assert ask(http, restricted).status_code == 200
        assert ask(http, restricted, f"/v2.1/servers/{instance.uuid}").status_code == 401


def test_a_service_s_second_token_is_looked_at_each_time(http: testing.TestClient) -> None:
    for _ in range(2):
        assert ask(http, f"member@{OWN}").status_code == 200
        assert ask(http, f"member@{OWN}", X_Service_Token="forged").status_code == 401


def test_where_nothing_shall_be_remembered_keystone_is_asked_each_time(
    cloud: Cloud, keystone: str
) -> None:
    forgetful = settings(keystone)
    forgetful.set_override("token_cache_time", -1, group="keystone_authtoken")
    http = testing.TestClient(make_application(cloud._services(), make_identity(forgetful)))
    before = PlayedKeystone.asked
    for _ in range(3):
        assert ask(http, f"member@{OWN}").status_code == 200
    assert PlayedKeystone.asked == before + 3


def test_a_decision_that_shall_be_delayed_lets_nobody_in(
    cloud: Cloud, keystone: str, instance: InstanceRecord
) -> None:
    delaying = settings(keystone)
    delaying.set_override("delay_auth_decision", True, group="keystone_authtoken")
    http = testing.TestClient(make_application(cloud._services(), make_identity(delaying)))
    for bad in (None, "forged", f"member@{OWN}!"):
        assert ask(http, bad, X_Project_Id=OWN).status_code == 403
    assert ask(http, f"member@{OWN}").status_code == 200


def test_a_keystone_that_is_away_is_503(cloud: Cloud) -> None:
    nowhere = settings(f"http://127.0.0.1:{free_port()}/v3")
    register_keystone(nowhere)
    nowhere.set_override("http_request_max_retries", 0, group="keystone_authtoken")
    http = testing.TestClient(make_application(cloud._services(), make_identity(nowhere)))
    reply = ask(http, f"member@{OWN}")
    assert reply.status_code == 503
    assert reply.headers["retry-after"]
    assert "127.0.0.1" not in reply.text
    assert ask(http, None, "/v2.1").status_code == 200


def test_the_api_does_not_start_without_credentials_for_keystone() -> None:
    with pytest.raises(ConfigurationError, match="keystone_authtoken"):
        make_identity(settings(None))


def test_a_job_is_its_user_s_and_keeps_no_token(
    cloud: Cloud, casts: RecordedCasts, http: testing.TestClient, instance: InstanceRecord
) -> None:
    reply = ask(
        http,
        f"member@{OWN}",
        f"/v2.1/servers/{instance.uuid}/action",
        "POST",
        {"createImage": {"name": "nightly"}},
    )
    job = cloud.job_of(reply.json["image_id"])
    assert (job["user_id"], job["project_id"]) == ("u-member", OWN)
    cloud.reaper.round()
    assert f"member@{OWN}" not in str(casts.next()["caller"].to_dict())


@pytest.mark.parametrize("obeys", [True, False])
def test_links_lead_through_a_proxy_that_ends_tls_if_it_is_trusted(
    cloud: Cloud, instance: InstanceRecord, obeys: bool
) -> None:
    trusting = settings(None)
    application = behind_proxy(cloud.http.app, trusting)
    trusting.set_override("enable_proxy_headers_parsing", obeys, group="oslo_middleware")
    reply = testing.TestClient(application).simulate_get(
        "/v2.1/servers",
        headers={
            "X-Auth-Token": "demo:p-demo",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "cloud.example.org",
        },
    )
    (server,) = reply.json["servers"]
    link = server["links"][0]["href"]
    assert link.startswith("https://cloud.example.org/v2.1/") is obeys


def test_keystonemiddleware_and_the_proxy_s_brings_no_eventlet_along() -> None:
    program = (
        "import sys; sys.modules['eventlet'] = None\n"
        "from keystonemiddleware import auth_token\n"
        "from oslo_middleware import http_proxy_to_wsgi\n"
        "print('fine')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "fine\n", done.stderr
