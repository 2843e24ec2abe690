# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document is current, whole and true: schemathesis asks what it describes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import api_service
from api_service import manage, openapi
from api_service.app import ROUTES
from api_service.schemas import v1
from api_service.store.overrides import Overrides
from common.reports import InstanceRecord
from tests.api import agents as agent_says
from tests.api.clouds import Cloud

COMMITTED = Path(api_service.__file__).with_name("openapi.json")
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
#: Of each operation; enough for every kind of mistake that schemathesis makes on purpose.
EXAMPLES = 12


def test_the_committed_document_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    """`stillframe-manage openapi > api_service/openapi.json` if this fails."""
    verb, arguments = manage.COMMANDS["openapi"][""]
    assert (verb(None), arguments) == (0, ())  # type: ignore[arg-type] # it reads no option
    assert capsys.readouterr().out == COMMITTED.read_text()


def test_it_is_served_to_anybody(cloud: Cloud) -> None:
    reply = cloud.get("/v1/openapi.json", None)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json == json.loads(COMMITTED.read_text())


def test_the_discovery_document_leads_there(cloud: Cloud) -> None:
    version = cloud.get("/v1", None).json["version"]
    links = {link["rel"]: link["href"] for link in version["links"]}
    assert links["describedby"].endswith("/v1/openapi.json")
    assert cloud.get("/v1/", None).json["version"] == version


def test_every_route_and_method_is_in_it() -> None:
    document = openapi.document(ROUTES)
    assert set(document["paths"]) == {url for url, _, _ in ROUTES}
    for url, methods in document["paths"].items():
        assert methods, url
        for described in methods.values():
            assert described["summary"].endswith("."), url
    asked = {(method, url) for url, methods in document["paths"].items() for method in methods}
    assert set(openapi.OPERATIONS) <= asked, "nothing is described that is not there"


def test_what_the_policy_guards_names_its_rules() -> None:
    for url, methods in openapi.document(ROUTES)["paths"].items():
        if url.startswith("/v1/"):
            for described in methods.values():
                assert described.get("x-policies") or url == "/v1/openapi.json", url


@pytest.fixture
def busy(cloud: Cloud, instance: InstanceRecord) -> dict[str, str]:
    """Ids that lead somewhere: an idle instance, a job that runs, one that is done."""
    cloud.streams.longest_s = 0.05
    other, idle = agent_says.instance(), agent_says.instance()
    cloud.announce(instance, other, idle)
    Overrides(cloud.database).change_metadata(idle.uuid, lambda _: {"a": "1"})
    ids: dict[str, str] = {"server_id": idle.uuid}
    for name, record in (("job_id", instance), ("done_id", other)):
        image_id = cloud.snapshot(record.uuid).json["image_id"]
        ids[name] = str(cloud.casts.next()["job_id"])
        cloud.report("job_accepted", agent_says.accepted(ids[name], record.uuid, image_id))
        cloud.report("job_progress", agent_says.progress(ids[name]))
    report = agent_says.finished(ids["done_id"], other.uuid, image_id)
    cloud.report("job_finished", report)
    return ids


def test_each_reply_of_ours_is_what_its_schema_says(cloud: Cloud, busy: dict[str, str]) -> None:
    for url, schema in {
        "/v1": v1.VERSION_BODY,
        "/v1/hosts": v1.HOSTS_BODY,
        "/v1/jobs": v1.JOBS_BODY,
        "/v1/jobs?limit=1": v1.JOBS_BODY,
        f"/v1/jobs/{busy['job_id']}": v1.JOB_BODY,
        f"/v1/jobs/{busy['done_id']}": v1.JOB_BODY,
        f"/v1/jobs/{busy['job_id']}/events?wait=0": v1.EVENT_BODY,
    }.items():
        reply = cloud.get(url, "admin:ops")
        assert reply.status_code == 200, url
        Draft202012Validator(schema).validate(reply.json)


def cases() -> Iterator[tuple[str, str, GenerationMode]]:
    """Each operation, asked well; and asked badly, where there is anything that can be wrong."""
    for url, methods in openapi.document(ROUTES)["paths"].items():
        for method, described in methods.items():
            yield url, method, GenerationMode.POSITIVE
            takes_query = any(one.get("in") == "query" for one in described["parameters"])
            if takes_query or "requestBody" in described:
                yield url, method, GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("url", "method", "mode"), list(cases()), ids=lambda value: getattr(value, "value", value)
)
def test_what_it_describes_is_so_whatever_is_asked(
    cloud: Cloud, busy: dict[str, str], url: str, method: str, mode: GenerationMode
) -> None:
    document = openapi.document(ROUTES)
    schema = schemathesis.openapi.from_dict(document)
    schema.app = cloud.http.app
    operation = schema[url][method.upper()]
    choice = random.Random(f"{method} {url}")
    known = {**busy, "alias": "servers", "key": "a", "flavor_id": "m1.tiny"}

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        for name in case.path_parameters or {}:
            if choice.random() < 0.7 and name in known:
                ids = [known[name], known["done_id"]] if name == "job_id" else [known[name]]
                case.path_parameters[name] = choice.choice(ids)
        who = choice.choice(["demo:p-demo", "admin:ops"])
        case.call_and_validate(headers={"X-Auth-Token": who}, checks=list(CHECKS))

    ask()
