# SPDX-License-Identifier: Apache-2.0
"""One agent for each host name: the API answers whether this one may have it."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from common.errors import BrokerUnavailable, ConfigurationError, InstanceNotFound, StillframeError
from common.reports import Hypervisor, ReportTaken
from compute_agent.announcer import Announcer
from compute_agent.guest.metadata import Owner
from compute_agent.guest.template import throw_away_metadata
from tests.unit.compute_agent.conftest import wait_for


class Api:
    """Answers reports as it is told to, and keeps them."""

    timeout_s = 5.0

    def __init__(self) -> None:
        self.answer: Any = ReportTaken(taken=True).to_wire()
        self.calls: list[dict[str, Any]] = []

    def call(self, _context: object, _method: str, *, report: dict[str, Any]) -> Any:
        self.calls.append(report)
        if isinstance(self.answer, StillframeError):
            raise self.answer
        return self.answer


class Host:
    """A hypervisor without guests."""

    def guests(self) -> list[Any]:
        return []

    def info(self) -> Hypervisor:
        return Hypervisor(type="QEMU", version=1, hostname="h", vcpus=1, memory_mib=1)


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def announcer(api: Api) -> Announcer:
    host: Any = Host()
    client: Any = api
    return Announcer(
        client,
        host,
        host="h",
        agent_id="an-id",
        interval_s=0.01,
        full_every=2,
        default_owner=None,
        open_jobs=lambda: (),
    )


REFUSED = ReportTaken(taken=False, reason="another compute agent reports as host h").to_wire()


def test_an_agent_whose_host_name_is_taken_does_not_start(api: Api, announcer: Announcer) -> None:
    api.answer = REFUSED
    with pytest.raises(ConfigurationError, match="another compute agent reports as host h"):
        announcer.claim_host()
    assert api.calls[0]["agent_id"] == "an-id"
    assert api.calls[0]["instances"] is None, "a stranger's list would bury the other's instances"


@pytest.mark.parametrize("answer", [None, BrokerUnavailable("away")])
def test_an_api_that_says_nothing_keeps_no_agent_from_its_start(
    api: Api, announcer: Announcer, answer: Any
) -> None:
    api.answer = answer
    announcer.claim_host()


def test_an_agent_that_is_refused_later_is_told_so(api: Api, announcer: Announcer) -> None:
    refusals: list[ConfigurationError] = []
    announcer.on_refused = refusals.append
    announcer.start()
    wait_for(lambda: len(api.calls) > 2)
    assert refusals == []
    api.answer = REFUSED
    wait_for(lambda: refusals != [])
    announcer.stop(time.monotonic() + 5)


def test_a_heartbeat_says_for_how_long_it_is_true(api: Api, announcer: Announcer) -> None:
    announcer.claim_host()
    assert api.calls[0]["expires_s"] == api.timeout_s


def test_a_list_is_as_old_as_the_look_at_its_guests(
    api: Api, announcer: Announcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the API takes it for newer than an instance that was made during the look."""
    look_s = 0.05

    def slowly(_: Host) -> list[Any]:
        time.sleep(look_s)
        return []

    monkeypatch.setattr(Host, "guests", slowly)
    announcer.start()
    wait_for(lambda: any(call["instances"] is not None for call in api.calls))
    announcer.stop(time.monotonic() + 5)
    told = next(call for call in api.calls if call["instances"] is not None)
    assert told["expires_s"] >= api.timeout_s + look_s


class Throwaway:
    """A domain that an image is tried out in."""

    uuid, domain_name = "5f0c6e0e-6c0a-4a4f-9f6e-3f1f0e8a4b11", "verify-5f0c6e0e"

    def describe(self) -> ET.Element:
        domain = ET.Element("domain")
        ET.SubElement(domain, "metadata").append(throw_away_metadata())
        return domain


def test_what_is_thrown_away_again_is_announced_to_nobody(
    api: Api, announcer: Announcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "guests", lambda _: [Throwaway()])
    # Not even where every domain without an owner has one.
    announcer._default_owner = Owner(project_id="p", user_id="u")
    announcer.free_disk_gib = lambda: 7
    announcer.start()
    wait_for(lambda: any(call["instances"] is not None for call in api.calls))
    announcer.stop(time.monotonic() + 5)
    told = next(call for call in api.calls if call["instances"] is not None)
    assert told["instances"] == []
    assert told["hypervisor"]["free_disk_gib"] == 7


class Busy:
    """A domain that is gone by the time that libvirt answers."""

    uuid, domain_name = "0b0f5d43-0f0f-4d5c-8a55-0f3f8a1f6d01", "instance-1"

    def describe(self) -> ET.Element:
        raise InstanceNotFound("it no longer exists on its host")


def test_a_long_list_of_busy_domains_keeps_no_heartbeat_waiting(
    api: Api, announcer: Announcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "guests", lambda _: [Busy(), Busy(), Busy()])
    announcer.interval_s = 0.0
    announcer.start()
    wait_for(lambda: any(call["instances"] is not None for call in api.calls))
    announcer.stop(time.monotonic() + 5)
    beats = [call["instances"] is None for call in api.calls[:4]]
    assert beats == [True, True, True, False]
