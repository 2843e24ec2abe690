# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a request, besides the tree of `common.errors`.

    ApiError                 base
    ├── BadRequest           body, header or parameter is wrong; the message names it
    ├── Unauthenticated      no identity came along
    ├── IdentityUnavailable  nobody can say who the caller is
    ├── Forbidden            the policy says no
    ├── NotFound             nothing is there under this URL, for this caller
    ├── VersionUnsupported   a microversion that this API does not speak
    ├── LengthRequired       the body comes without its length
    ├── Conflict             the state of the thing excludes the request now
    ├── RequestTooLarge      the body is longer than any honest one
    ├── OverQuota            the project has as much as it may have
    ├── TooManyRequests      the project asks more often than it may
    ├── NoFreeStream         as many wait for events as this process can serve
    ├── DatabaseUnavailable  the database does not answer, or not in time
    └── HostNameTaken        two agents were given one host name

`faults` turns them into Nova's fault bodies.
"""

from __future__ import annotations

from common.errors import StillframeError


class ApiError(StillframeError):
    """Base of what only the REST side raises."""

    code = "api_error"


class BadRequest(ApiError):
    """The caller sent something that cannot be understood; the message names it."""

    code = "bad_request"


class Unauthenticated(ApiError):
    """The request carries no identity that can be believed."""

    code = "unauthenticated"

    def __init__(self, message: str, challenge: str | None = None) -> None:
        super().__init__(message)
        #: The WWW-Authenticate header: where an identity is to be had.
        self.challenge = challenge or 'Keystone uri="noauth"'


class IdentityUnavailable(ApiError):
    """The identity service cannot be asked who the caller is."""

    code = "identity_unavailable"
    retryable = True


class Forbidden(ApiError):
    """The policy does not let this caller do this."""

    code = "forbidden"


class NotFound(ApiError):
    """What the URL names does not exist, or not for this caller."""

    code = "not_found"


class VersionUnsupported(ApiError):
    """The microversion asked for lies outside of what this API speaks."""

    code = "version_unsupported"


class LengthRequired(ApiError):
    """The body is sent in chunks, and not every server in front of us tells where it ends."""

    code = "length_required"


class Conflict(ApiError):
    """The state of the named thing excludes the request now."""

    code = "conflict"


class RequestTooLarge(ApiError):
    """The body is larger than any request of ours can be."""

    code = "request_too_large"


class HostNameTaken(ApiError):
    """An agent reports under the host name of another one that lives."""

    code = "host_name_taken"


class OverQuota(ApiError):
    """The project has as much as it may have; the message says of what."""

    code = "over_quota"


class TooManyRequests(ApiError):
    """The project asks more often than it may, or waits for too many events at once."""

    code = "too_many_requests"
    retryable = True


class NoFreeStream(ApiError):
    """As many callers wait for events as this process has threads for."""

    code = "no_free_stream"
    retryable = True


class DatabaseUnavailable(ApiError):
    """The database failed; what it said stands in the log alone."""

    code = "database_unavailable"
    retryable = True
