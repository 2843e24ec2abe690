# SPDX-License-Identifier: Apache-2.0
"""Which version of Nova's compute API a request speaks.

Clients name it in `OpenStack-API-Version: compute 2.N` or in the older
`X-OpenStack-Nova-API-Version: 2.N`; without either it is 2.1. Every reply
repeats it in both, because each client reads only one of them.
"""

from __future__ import annotations

from typing import NamedTuple

import falcon
import microversion_parse

from api_service.errors import BadRequest, VersionUnsupported

SERVICE = "compute"
HEADER = "OpenStack-API-Version"
LEGACY_HEADER = "X-OpenStack-Nova-API-Version"


class Version(NamedTuple):
    """A microversion; compares as a pair."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


MINIMUM = Version(2, 1)
#: The newest whose every shape we produce and tempest's schemas judge.
MAXIMUM = Version(2, 100)


def requested(request: falcon.Request) -> Version:
    """Return the version of a request.

    Raises BadRequest if the header is no version, VersionUnsupported if it is
    one that this API does not speak.
    """
    headers = [(name, value) for name, value in request.headers.items()]
    text = microversion_parse.get_version(headers, SERVICE, legacy_headers=[LEGACY_HEADER])
    if text is None:
        return MINIMUM
    if text == "latest":
        return MAXIMUM
    try:
        parsed = microversion_parse.parse_version_string(text)
    except TypeError:
        raise BadRequest(
            f"API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum."
        ) from None
    version = Version(parsed.major, parsed.minor)
    if not MINIMUM <= version <= MAXIMUM:
        raise VersionUnsupported(
            f"Version {version} is not supported by the API. Minimum is {MINIMUM} and maximum is "
            f"{MAXIMUM}."
        )
    return version


def announce(response: falcon.Response, version: Version) -> None:
    """Repeat the version in the reply, the way each kind of client reads it."""
    response.set_header(HEADER, f"{SERVICE} {version}")
    response.set_header(LEGACY_HEADER, str(version))
    response.append_header("Vary", HEADER)
    response.append_header("Vary", LEGACY_HEADER)
