# SPDX-License-Identifier: Apache-2.0
"""The versions documents, which clients read before they log in, and the health page."""

from __future__ import annotations

import functools
import importlib.resources
import logging

import falcon

from api_service import views
from api_service.resources.services import Resource
from common.errors import StillframeError

LOG = logging.getLogger(__name__)

_MEDIA_TYPE = "application/vnd.openstack.compute+json;version="


class Root(Resource):
    """`GET /`: every version of the API."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List v2.0 and v2.1."""
        base = self.base_url(request)
        response.media = {
            "versions": [views.version_document(one, base) for one in ("v2.0", "v2.1")]
        }


class VersionDocument(Resource):
    """`GET /v2.1/` and `GET /v2/`: one version of the API."""

    version_id = "v2.1"
    media_version = "2.1"

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Describe it."""
        document = views.version_document(self.version_id, self.base_url(request))
        media_type = {"base": "application/json", "type": _MEDIA_TYPE + self.media_version}
        response.media = {"version": document | {"media-types": [media_type]}}


class OldVersionDocument(VersionDocument):
    """`GET /v2/`: the API from before microversions, whose replies name none."""

    version_id = "v2.0"
    media_version = "2"


class OurVersionDocument(Resource):
    """`GET /v1`: what Nova has not: jobs and hosts."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Say where it is described."""
        response.media = {"version": views.our_version_document(self.base_url(request))}


class OpenApi(Resource):
    """`GET /v1/openapi.json`: everything that is answered here, for programs."""

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Send the document that `stillframe-manage openapi` made of this release."""
        response.content_type = falcon.MEDIA_JSON
        response.data = _openapi_document()


class NoIdentityDocument(Resource):
    """`GET /v3`: stock clients look for a Keystone before they list servers.

    With `auth_strategy = noauth` there is none; they are content with this, and
    ask it nothing more.
    """

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Claim to be an identity service of version 3."""
        link = {"rel": "self", "href": f"{self.base_url(request)}/v3/"}
        response.media = {"version": {"id": "v3.14", "status": "stable", "links": [link]}}


class Health(Resource):
    """`GET /healthcheck`: 503 when this process cannot serve, and which backend is away.

    Without the broker it still can: jobs are recorded and cast when it is back,
    so a load balancer must not drain every API for it. `healthy` tells it all.
    """

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Check each backend, the slow ones at most every few seconds."""
        states = {name: self._check(name) for name in self.services.health_checks}
        healthy = all(state == "ok" for state in states.values())
        response.status = 200 if states["database"] == "ok" else 503
        agents = self.services.agents
        up = sum(agents.is_up(agent) for agent in agents.all()) if states["database"] == "ok" else 0
        response.media = {"healthy": healthy, "backends": states, "agents_up": up}

    def _check(self, name: str) -> str:
        try:
            self.services.health_checks[name]()
        except StillframeError as error:
            LOG.warning("Health: %s: %s", name, error)
            return error.code
        except Exception:
            LOG.exception("Health: %s", name)
            return "unavailable"
        return "ok"


@functools.cache
def _openapi_document() -> bytes:
    return importlib.resources.files("api_service").joinpath("openapi.json").read_bytes()
