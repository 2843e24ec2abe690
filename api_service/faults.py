# SPDX-License-Identifier: Apache-2.0
"""From exceptions to Nova's fault bodies: `{"<name>": {"code": N, "message": ...}}`.

FAULTS is looked up along an exception's class hierarchy, so each leaf has a
fault; what is not in it at all is a defect of ours, told to the log in full and
to the client as Nova words it.
"""

from __future__ import annotations

import dataclasses
import logging

import falcon
from oslo_db import exception as db_errors
from sqlalchemy.exc import SQLAlchemyError

from api_service import errors as api
from common import errors as common
from common import glance

LOG = logging.getLogger(__name__)

_RETRY_AFTER_S = 5
_NO_ROUTE = "The resource could not be found."
_NO_DATABASE = "The database of this service does not answer now; try again."
_UNEXPECTED = (
    "Unexpected API Error. Please report this with the request id to the operator of this cloud."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How one kind of failure is told."""

    status: int
    name: str
    title: str | None = None
    retry_after_s: int | None = None


BAD_REQUEST = Fault(status=400, name="badRequest")
NOT_FOUND = Fault(status=404, name="itemNotFound")
CONFLICT = Fault(status=409, name="conflictingRequest")
UNAVAILABLE = Fault(status=503, name="serviceUnavailable", retry_after_s=_RETRY_AFTER_S)
INTERNAL = Fault(status=500, name="computeFault")

FAULTS: dict[type[Exception], Fault] = {
    api.BadRequest: BAD_REQUEST,
    # Not `unauthorized`: this one is the identity middleware's in Nova, not its own.
    api.Unauthenticated: Fault(status=401, name="error", title="Unauthorized"),
    api.IdentityUnavailable: UNAVAILABLE,
    api.Forbidden: Fault(status=403, name="forbidden"),
    api.NotFound: NOT_FOUND,
    api.VersionUnsupported: Fault(status=406, name="computeFault"),
    api.LengthRequired: Fault(status=411, name="computeFault"),
    api.Conflict: CONFLICT,
    api.HostNameTaken: CONFLICT,
    api.RequestTooLarge: Fault(status=413, name="overLimit", retry_after_s=0),
    api.OverQuota: Fault(status=403, name="forbidden"),
    api.TooManyRequests: Fault(status=429, name="overLimit", retry_after_s=_RETRY_AFTER_S),
    api.NoFreeStream: UNAVAILABLE,
    api.DatabaseUnavailable: UNAVAILABLE,
    common.ConfigurationError: UNAVAILABLE,
    common.MalformedMessage: BAD_REQUEST,
    common.UnsupportedRpcVersion: CONFLICT,
    common.InstanceNotFound: NOT_FOUND,
    common.InstanceBusy: CONFLICT,
    common.AgentUnavailable: CONFLICT,
    common.BrokerUnavailable: UNAVAILABLE,
    common.JobFailed: CONFLICT,
    glance.ImageNotFound: NOT_FOUND,
    glance.ImageServiceUnavailable: UNAVAILABLE,
    glance.ImageRefused: BAD_REQUEST,
    db_errors.DBError: UNAVAILABLE,
    # What oslo.db leaves as it is: no connection became free in time.
    SQLAlchemyError: UNAVAILABLE,
}

#: What Glance refuses, told as Nova tells it.
_REFUSED_BY_GLANCE = {
    401: UNAVAILABLE,
    403: Fault(status=403, name="forbidden"),
    409: CONFLICT,
    413: Fault(status=403, name="forbidden"),
}


def fault_of(error: Exception) -> Fault:
    """Return how an exception is told."""
    if isinstance(error, glance.ImageRefused):
        return _REFUSED_BY_GLANCE.get(error.status, BAD_REQUEST)
    return next((FAULTS[kind] for kind in type(error).__mro__ if kind in FAULTS), INTERNAL)


def words_of(error: Exception) -> common.StillframeError:
    """Return an exception as a caller may hear it: itself, or one that tells nothing of ours."""
    if isinstance(error, common.StillframeError):
        return error
    if isinstance(error, db_errors.DBError | SQLAlchemyError):
        return api.DatabaseUnavailable(_NO_DATABASE)
    return common.StillframeError(_UNEXPECTED)


def handle(
    request: falcon.Request, response: falcon.Response, error: Exception, _params: object
) -> None:
    """Falcon's error handler for everything that is raised."""
    if isinstance(error, falcon.HTTPStatus):
        raise error
    if isinstance(error, falcon.HTTPRouteNotFound | falcon.HTTPMethodNotAllowed):
        _tell_no_route(response)
        return
    if isinstance(error, falcon.HTTPError):
        _tell(response, _of_falcon(error), _words_of_falcon(error))
        return
    fault = fault_of(error)
    if fault is INTERNAL:
        LOG.error("%s %s failed in an unforeseen way", request.method, request.path, exc_info=error)
        _tell(response, fault, _UNEXPECTED)
        return
    if isinstance(error, db_errors.DBError | SQLAlchemyError):
        # Its words hold statements and addresses.
        LOG.error("%s %s: the database failed", request.method, request.path, exc_info=error)
        _tell(response, fault, _NO_DATABASE)
        return
    LOG.info("%s %s refused with %d: %s", request.method, request.path, fault.status, error)
    if isinstance(error, api.Unauthenticated):
        response.set_header("WWW-Authenticate", error.challenge)
    _tell(response, fault, str(error))


def _tell(response: falcon.Response, fault: Fault, message: str) -> None:
    response.status = fault.status
    title = {"title": fault.title} if fault.title else {}
    body: dict[str, object] = {"code": fault.status, **title, "message": message}
    if fault.retry_after_s is not None:
        response.set_header("Retry-After", str(fault.retry_after_s))
        if fault.name == "overLimit":
            body["retryAfter"] = str(fault.retry_after_s)
    response.media = {fault.name: body}


def _tell_no_route(response: falcon.Response) -> None:
    """Answer a URL, or a method on it, that is not there: 404 and no fault, as Nova does."""
    response.status = falcon.HTTP_404
    response.media = {"code": "404 Not Found", "title": "Not Found", "message": _NO_ROUTE}


def _of_falcon(error: falcon.HTTPError) -> Fault:
    status = falcon.http_status_to_code(error.status)
    known = {400: BAD_REQUEST, 404: NOT_FOUND, 413: FAULTS[api.RequestTooLarge]}
    return known.get(status, Fault(status=status, name="computeFault"))


def _words_of_falcon(error: falcon.HTTPError) -> str:
    return error.description or error.title or "The request could not be understood."
