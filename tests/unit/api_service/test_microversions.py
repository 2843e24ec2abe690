# SPDX-License-Identifier: Apache-2.0
"""Which microversion a request gets."""

from __future__ import annotations

import falcon
import pytest
from falcon import testing

from api_service import microversions
from api_service.errors import BadRequest, VersionUnsupported
from api_service.microversions import MAXIMUM, MINIMUM, Version


def ask(**headers: str) -> Version:
    """Return the version of a request with these headers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return microversions.requested(falcon.Request(testing.create_environ(headers=named)))


def test_a_request_without_a_version_gets_the_oldest() -> None:
    assert ask() == MINIMUM == Version(2, 1)


@pytest.mark.parametrize("minor", [1, 45, 79, MAXIMUM.minor])
def test_both_headers_name_the_version(minor: int) -> None:
    assert ask(OpenStack_API_Version=f"compute 2.{minor}") == Version(2, minor)
    assert ask(X_OpenStack_Nova_API_Version=f"2.{minor}") == Version(2, minor)


def test_latest_is_the_newest() -> None:
    assert ask(OpenStack_API_Version="compute latest") == MAXIMUM


def test_the_version_of_another_service_says_nothing() -> None:
    assert ask(OpenStack_API_Version="identity 3.14") == MINIMUM


@pytest.mark.parametrize("text", ["2.0", "1.9", "3.0", "2.9999"])
def test_a_version_outside_the_range_is_refused_with_the_range(text: str) -> None:
    with pytest.raises(VersionUnsupported, match=rf"2\.1 .*{MAXIMUM}"):
        ask(OpenStack_API_Version=f"compute {text}")


@pytest.mark.parametrize("text", ["two", "2", "2.x", "2.1.1"])
def test_a_malformed_version_is_the_callers_fault(text: str) -> None:
    with pytest.raises(BadRequest, match=r"MajorNum\.MinorNum"):
        ask(X_OpenStack_Nova_API_Version=text)


def test_versions_compare_by_number_not_by_text() -> None:
    assert Version(2, 9) < Version(2, 10) < Version(2, 100)
