# SPDX-License-Identifier: Apache-2.0
"""`auth_strategy = keystone`: who asks, by the word of Keystone.

keystonemiddleware checks the tokens and caches what it learns; it is asked
from inside of falcon's pipeline, so that its refusals are faults, lines of the
log and request ids like all others. What it found lasts for a second here, too:
it costs as much as all the rest of a small request, and programs that wait for
something ask again and again.
"""

from __future__ import annotations

import hashlib
import http
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import falcon
from keystoneauth1 import exceptions as keystone_errors
from oslo_utils import timeutils

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
_OF_THE_USER = "X-Auth-Token"
_OF_A_SERVICE = "X-Service-Token"
#: What keystonemiddleware leaves in the environ: Keystone's own words.
_TOLD = "keystone.token_info"
#: How long a caller is known by the token alone. Short beside `token_cache_time` (300 s), for so
#: long may a token that was revoked be taken for good.
_KNOWN_S = 1.0
_KNOWN_MAX = 1000
_CHALLENGE = "WWW-Authenticate"
_REFUSED = "The request you have made requires authentication."
_UNSCOPED = "This API serves projects: the token must be scoped to one."


def confirmed(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Stand behind keystonemiddleware; what arrives here has a good token."""
    start_response(f"{http.HTTPStatus.NO_CONTENT.value} No Content", [])
    return []


class _Known:
    """Callers of the last second, by a hash of their tokens; for many threads."""

    def __init__(self, known_s: float, clock: Callable[[], float]) -> None:
        self._known_s = known_s
        self._clock = clock
        #: Hash of the token → until when (of the monotonic clock), and what a context takes over.
        self._callers: dict[bytes, tuple[float, dict[str, Any]]] = {}

    def get(self, request: falcon.Request) -> dict[str, Any] | None:
        """Return what is known of the one who asks, None: keystonemiddleware must say."""
        key = _key(request)
        known = self._callers.get(key) if key else None
        return known[1] if known and self._clock() < known[0] else None

    def put(self, request: falcon.Request, found: dict[str, Any]) -> None:
        """Keep what was found for as long as the token lasts, if it depends on that alone."""
        key, told = _key(request), request.env.get(_TOLD, {}).get("token")
        if key is None or told is None:
            return  # also where `delay_auth_decision` lets through what is no good
        rules = (told.get("application_credential") or {}).get("access_rules")
        # With rules the path counts, too, and of a bound token the connection.
        if rules is not None or told.get("bind"):
            return
        expires_at = timeutils.normalize_time(timeutils.parse_isotime(told["expires_at"]))
        left_s = (expires_at - timeutils.utcnow()).total_seconds()
        if len(self._callers) >= _KNOWN_MAX:
            self._callers.clear()
        until = self._clock() + min(self._known_s, left_s)
        self._callers[key] = (until, found)


def _key(request: falcon.Request) -> bytes | None:
    """Return a hash of the only token that a request brings, None if there are two or none."""
    token = request.get_header(_OF_THE_USER)
    if not token or request.get_header(_OF_A_SERVICE) is not None:
        return None
    return hashlib.sha256(token.encode()).digest()


class KeystoneIdentity:
    """Asks `check`, keystonemiddleware before `confirmed`, for each request but the open ones.

    `cache_s` is its `token_cache_time`; where it shall remember nothing, nor do we.
    `clock` returns seconds.
    """

    def __init__(
        self,
        check: WsgiApplication,
        *,
        cache_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._check = check
        self._known = _Known(max(0.0, min(_KNOWN_S, cache_s)), clock)

    def process_request(self, request: falcon.Request, _response: falcon.Response) -> None:
        """Complete the request's context.

        Raises Unauthenticated, Forbidden for a token of no project, and
        IdentityUnavailable if Keystone could not be asked.
        """
        if is_open(request.path):
            return
        found = self._known.get(request)
        if found is None:
            found = self._found(request)
        caller: RequestContext = request.context.caller
        for name, value in found.items():
            setattr(caller, name, value)
        if caller.project_id is None:
            raise Forbidden(_UNSCOPED)

    def _found(self, request: falcon.Request) -> dict[str, Any]:
        """Return what a context takes over of the request's token."""
        status, headers = self._ask(request.env)
        if status == http.HTTPStatus.UNAUTHORIZED:
            raise Unauthenticated(_REFUSED, headers.get(_CHALLENGE))
        if status != http.HTTPStatus.NO_CONTENT:
            raise IdentityUnavailable("The identity service does not answer now; try again.")
        context = RequestContext.from_environ(request.env, overwrite=False)
        found = {name: getattr(context, name) for name in _TAKEN}
        self._known.put(request, found)
        return found

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
