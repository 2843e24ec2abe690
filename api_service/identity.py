# SPDX-License-Identifier: Apache-2.0
"""`auth_strategy = keystone`: who asks, by the word of Keystone.

keystonemiddleware checks the tokens and caches what it learns; it is asked
from inside of falcon's pipeline, so that its refusals are faults, lines of the
log and request ids like all others.
"""

from __future__ import annotations

import http
import logging
from collections.abc import Callable, Iterable
from typing import Any

import falcon
from keystoneauth1 import exceptions as keystone_errors

from api_service.errors import Forbidden, IdentityUnavailable, Unauthenticated
from api_service.middleware import is_open
from common.context import RequestContext

LOG = logging.getLogger(__name__)

WsgiApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: What a context takes over of a checked token. Not the token: nobody here needs it again.
_TAKEN = (
    "user_id",
    "user_name",
    "user_domain_id",
    "project_id",
    "project_name",
    "project_domain_id",
    "domain_id",
    "system_scope",
    "roles",
    "is_admin_project",
    "service_user_id",
    "service_project_id",
    "service_roles",
)
_CHALLENGE = "WWW-Authenticate"
_REFUSED = "The request you have made requires authentication."
_UNSCOPED = "This API serves projects: the token must be scoped to one."


def confirmed(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Stand behind keystonemiddleware; what arrives here has a good token."""
    start_response(f"{http.HTTPStatus.NO_CONTENT.value} No Content", [])
    return []


class KeystoneIdentity:
    """Asks `check`, keystonemiddleware before `confirmed`, for each request but the open ones."""

    def __init__(self, check: WsgiApplication) -> None:
        self._check = check

    def process_request(self, request: falcon.Request, _response: falcon.Response) -> None:
        """Complete the request's context.

        Raises Unauthenticated, Forbidden for a token of no project, and
        IdentityUnavailable if Keystone could not be asked.
        """
        if is_open(request.path):
            return
        status, headers = self._ask(request.env)
        if status == http.HTTPStatus.UNAUTHORIZED:
            raise Unauthenticated(_REFUSED, headers.get(_CHALLENGE))
        if status != http.HTTPStatus.NO_CONTENT:
            raise IdentityUnavailable("The identity service does not answer now; try again.")
        caller: RequestContext = request.context.caller
        found = RequestContext.from_environ(request.env, overwrite=False)
        for name in _TAKEN:
            setattr(caller, name, getattr(found, name))
        if caller.project_id is None:
            raise Forbidden(_UNSCOPED)

    def _ask(self, environ: dict[str, Any]) -> tuple[int, dict[str, str]]:
        """Return the status and the headers that keystonemiddleware answers with."""
        answers: list[tuple[int, dict[str, str]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], _info: Any = None) -> None:
            answers.append((int(status.split()[0]), dict(headers)))

        try:
            for _ in self._check(environ, start_response):
                pass
        except keystone_errors.ClientException as error:
            # Our own credentials, or a catalogue without a Keystone.
            LOG.error("Keystone cannot be asked about tokens: %s", error)
            return http.HTTPStatus.SERVICE_UNAVAILABLE, {}
        return answers[-1]
