# SPDX-License-Identifier: Apache-2.0
"""What happens to every request before its resource sees it: PIPELINE in `app` names the order.

Each class is falcon middleware. `RequestIds` binds the context that puts
`[req-…]` on every log line, `WholeRequests` refuses what cannot be read,
`Microversions` which version is spoken, `NoIdentity` (or `identity.KeystoneIdentity`)
who asks, and `RequestRates` bounds how often each project asks; `RequestLog` tells the
log how it ended, `LoopbackOnly` keeps strangers from `noauth`.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from typing import Any

import falcon

from api_service import microversions
from api_service.errors import BadRequest, Forbidden, LengthRequired, Unauthenticated
from common import context
from common.context import RequestContext

LOG = logging.getLogger(__name__)

#: What answers without an identity: clients discover versions before they log in.
_OPEN_PATHS = frozenset({"", "/v2", "/v2.1", "/v3", "/v1", "/v1/openapi.json", "/healthcheck"})
#: What a proxy adds to a request that it passes on.
_FORWARDED = ("Forwarded", "X-Forwarded-For")
_NOVA_PREFIX = "/v2.1"
#: It stands in every line of the log.
_REQUEST_ID = re.compile("req-[A-Za-z0-9-]{1,60}")


class RequestIds:
    """Gives each request an id, takes the caller's global one, and answers with both."""

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Bind a fresh context to the thread."""
        given = request.get_header("X-OpenStack-Request-ID")
        bound = context.new(global_request_id=given if _is_request_id(given) else None)
        bound.update_store()
        request.context.caller = bound
        request.context.began = time.monotonic()
        response.set_header("X-Openstack-Request-Id", bound.request_id)
        response.set_header("X-Compute-Request-Id", bound.request_id)


class LoopbackOnly:
    """Serves callers of this host alone: for `noauth` where another server chose the address."""

    def process_request(self, request: falcon.Request, _response: falcon.Response) -> None:
        """Raise Forbidden for a caller from elsewhere, or for whom a proxy speaks."""
        forwarded = any(request.get_header(name) for name in _FORWARDED)
        if forwarded or not ipaddress.ip_address(request.remote_addr).is_loopback:
            raise Forbidden(
                "This API believes everybody ([api] auth_strategy = noauth) and so serves its own "
                "host alone; noauth_anywhere = true lets others in."
            )


class RequestLog:
    """One INFO line a request: method, path, status, length, version, time."""

    def process_response(
        self,
        request: falcon.Request,
        response: falcon.Response,
        _resource: object,
        _succeeded: bool,
    ) -> None:
        """Write the line."""
        LOG.info(
            '%s "%s %s" status: %s len: %s microversion: %s time: %.4f',
            request.remote_addr,
            request.method,
            request.relative_uri,
            falcon.http_status_to_code(response.status),
            len(response.render_body() or b""),
            getattr(request.context, "version", "-"),
            time.monotonic() - request.context.began,
        )


class WholeRequests:
    """Refuses what no resource could make sense of."""

    def process_request(self, request: falcon.Request, _response: falcon.Response) -> None:
        """Raise LengthRequired for a body in chunks, BadRequest for a NUL in the query."""
        if request.get_header("Transfer-Encoding"):
            raise LengthRequired("The body of a request must come with a Content-Length.")
        if "%00" in request.query_string or "\x00" in request.query_string:
            # Not every database takes it, and no name holds one.
            raise BadRequest("Invalid input for query parameters: a NUL.")


class Microversions:
    """Finds the microversion of requests to Nova's API and repeats it in the reply."""

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Set `request.context.version`; the minimum until a header is understood."""
        request.context.version = microversions.MINIMUM
        if not request.path.startswith(_NOVA_PREFIX):
            return
        try:
            request.context.version = microversions.requested(request)
        finally:
            # A refusal, too, must say what it depends on, or a cache would mix replies up.
            microversions.announce(response, request.context.version)


class RequestRates:
    """Counts what each project asks, once it is known who asks."""

    def process_resource(
        self,
        request: falcon.Request,
        _response: falcon.Response,
        resource: Any,
        _params: dict[str, Any],
    ) -> None:
        """Raise TooManyRequests for a request that is one too many."""
        project_id = request.context.caller.project_id
        if project_id:
            resource.services.rates.take(project_id)


class NoIdentity:
    """`auth_strategy = noauth`: believes `X-Auth-Token: USER:PROJECT`, as Nova's noauth2 did."""

    def process_request(self, request: falcon.Request, _response: falcon.Response) -> None:
        """Complete the request's context, or raise Unauthenticated."""
        if is_open(request.path):
            return
        token = request.get_header("X-Auth-Token") or ""
        user, _, project = token.partition(":")
        if not user or not token.isprintable():
            raise Unauthenticated(
                "The request you have made requires authentication: send the header "
                "X-Auth-Token: USER:PROJECT."
            )
        caller: RequestContext = request.context.caller
        caller.user_id, caller.project_id = user, project or user
        caller.roles = ["member", "reader"] + (["admin"] if user == "admin" else [])


def is_open(path: str) -> bool:
    """Tell whether a path answers anybody."""
    return path.rstrip("/") in _OPEN_PATHS


def _is_request_id(value: str | None) -> bool:
    return _REQUEST_ID.fullmatch(value or "") is not None
