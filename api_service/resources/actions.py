# SPDX-License-Identifier: Apache-2.0
"""`POST /servers/{id}/action`: the body's only key names the action. ACTIONS says what does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon

from api_service import schemas
from api_service.errors import BadRequest
from api_service.microversions import Version
from api_service.resources.services import Resource
from api_service.snapshots import SnapshotWish

#: From here on the image's id stands in the body, before in the Location header.
_IMAGE_ID_IN_BODY = Version(2, 45)


class ServerAction(Resource):
    """One URL for everything that is done to a server."""

    def on_post(self, request: falcon.Request, response: falcon.Response, server_id: str) -> None:
        """Find the action and do it."""
        body = schemas.read_body(request)
        if len(body) != 1:
            raise BadRequest("Malformed request body: it must name exactly one action.")
        (name,) = body
        action = ACTIONS.get(name)
        if action is None:
            raise BadRequest(f"There is no such action: {name[:64]}")
        action(self, request, response, server_id, body)

    def create_image(
        self,
        request: falcon.Request,
        response: falcon.Response,
        server_id: str,
        body: dict[str, Any],
    ) -> None:
        """Take a snapshot: 202, and the image's id the way the version tells it."""
        schemas.validate(schemas.CREATE_IMAGE, body)
        rule = "os_compute_api:servers:create_image"
        instance = self.visible_instance(request, server_id, rule)
        asked = body["createImage"]
        wish = SnapshotWish.of(asked["name"], asked.get("metadata", {}))
        if wish.options.bandwidth_limit is not None:
            self.services.authorizer.require(
                self.caller(request), "stillframe:jobs:bandwidth_limit", instance.project_id
            )
        job = self.services.snapshots.request(self.caller(request), instance, wish)
        self.services.dispatcher.poke(job.id)
        response.status = falcon.HTTP_202
        if request.context.version >= _IMAGE_ID_IN_BODY:
            response.media = {"image_id": job.image_id}
        else:
            response.location = f"{self.base_url(request)}/images/{job.image_id}"


Action = Callable[
    [ServerAction, falcon.Request, falcon.Response, str, dict[str, Any]],
    None,
]

ACTIONS: dict[str, Action] = {
    "createImage": ServerAction.create_image,
}
