# SPDX-License-Identifier: Apache-2.0
"""`/servers/{id}/metadata`: what users write on their servers."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from api_service import powers, schemas
from api_service.errors import BadRequest, Conflict, NotFound
from api_service.quotas import Quotas
from api_service.resources.services import Resource
from api_service.store.records import Instance
from common.states import VmState

Change = Callable[[dict[str, str]], dict[str, str]]


class _Metadata(Resource):
    """What both have: how it is changed."""

    def _change(
        self, request: falcon.Request, server_id: str, rule: str, change: Change
    ) -> dict[str, str]:
        instance = self.visible_instance(request, server_id, rule)
        is_admin = self.services.authorizer.is_admin(self.caller(request))
        powers.require_unlocked(instance, is_admin=is_admin)
        _require_idle(instance)
        return self.services.overrides.change_metadata(
            instance.uuid, lambda known: self._bounded(change(known))
        )

    def _bounded(self, metadata: dict[str, str]) -> dict[str, str]:
        Quotas().require_server_metadata(metadata)
        return metadata


class ServerMetadata(_Metadata):
    """All of a server's metadata."""

    def on_get(self, request: falcon.Request, response: falcon.Response, server_id: str) -> None:
        """List it."""
        instance = self.visible_instance(request, server_id, "os_compute_api:server-metadata:index")
        response.media = {"metadata": instance.metadata}

    def on_post(self, request: falcon.Request, response: falcon.Response, server_id: str) -> None:
        """Add to it, and change what is there."""
        given = self._given(request)
        changed = self._change(
            request,
            server_id,
            "os_compute_api:server-metadata:create",
            lambda known: {**known, **given},
        )
        response.media = {"metadata": changed}

    def on_put(self, request: falcon.Request, response: falcon.Response, server_id: str) -> None:
        """Put other metadata in its place."""
        given = self._given(request)
        changed = self._change(
            request, server_id, "os_compute_api:server-metadata:update_all", lambda _known: given
        )
        response.media = {"metadata": changed}

    def _given(self, request: falcon.Request) -> dict[str, str]:
        body = schemas.read_body(request)
        schemas.validate(schemas.METADATA, body)
        given: dict[str, str] = body["metadata"]
        return given


class ServerMetadataItem(_Metadata):
    """One item of it."""

    def on_get(
        self, request: falcon.Request, response: falcon.Response, server_id: str, key: str
    ) -> None:
        """Show it."""
        instance = self.visible_instance(request, server_id, "os_compute_api:server-metadata:show")
        response.media = {"meta": {key: _item(instance.metadata, key)}}

    def on_put(
        self, request: falcon.Request, response: falcon.Response, server_id: str, key: str
    ) -> None:
        """Set it."""
        body = schemas.read_body(request)
        schemas.validate(schemas.META, body)
        if list(body["meta"]) != [key]:
            raise BadRequest("Request body and URI mismatch")
        given: dict[str, str] = body["meta"]
        self._change(
            request,
            server_id,
            "os_compute_api:server-metadata:update",
            lambda known: {**known, **given},
        )
        response.media = {"meta": given}

    def on_delete(
        self, request: falcon.Request, response: falcon.Response, server_id: str, key: str
    ) -> None:
        """Remove it."""

        def without(known: dict[str, str]) -> dict[str, str]:
            _item(known, key)
            return {name: value for name, value in known.items() if name != key}

        self._change(request, server_id, "os_compute_api:server-metadata:delete", without)
        response.status = falcon.HTTP_204


def _item(known: dict[str, str], key: str) -> str:
    if key not in known:
        raise NotFound("Metadata item was not found")
    return known[key]


def _require_idle(instance: Instance) -> None:
    where = f"Cannot 'update metadata' instance {instance.uuid} while it is in"
    if instance.task_state is not None:
        raise Conflict(f"{where} task_state {instance.task_state}")
    if instance.vm_state is VmState.ERROR:
        raise Conflict(f"{where} vm_state {instance.vm_state}")
