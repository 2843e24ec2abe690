# SPDX-License-Identifier: Apache-2.0
"""`/images`: Nova's old proxy to Glance, which clients from before 2.36 use.

Calls to Glance are the service's own, so what a caller may see is decided
here: its project's images and public ones; everything, for administrators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon

from api_service import views
from api_service.errors import Forbidden, NotFound
from api_service.microversions import Version
from api_service.resources import parameters
from api_service.resources.services import Resource
from api_service.visibility import is_uuid
from common.glance import Image, ImageNotFound

_GONE_SINCE = Version(2, 36)
_PROPERTY_PREFIX = "property-"
#: Who sees an image that is not their own, by its id; lists leave the community's out.
_ANYBODYS = frozenset({"public", "community"})

#: Filters: whether an image has the value. Others, as in Nova, narrow down nothing.
_FILTERS: dict[str, Callable[[Image, str], bool]] = {
    "name": lambda image, name: image.name == name,
    "status": lambda image, status: views.image_status(image) == status.upper(),
    # An id, or the link to a server.
    "server": lambda image, server: (
        image.properties.get("instance_uuid") == server.rpartition("/")[2]
    ),
    "type": lambda image, kind: image.properties.get("image_type") == kind,
}


class Images(Resource):
    """`GET /images`."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List the images that the caller may see, newest first, a page at a time."""
        _require_old(request)
        found, more = parameters.page(
            request,
            sorted(self._found(request), key=lambda image: (image.created_at, image.id))[::-1],
            lambda image: image.id,
            self.services.max_limit,
        )
        viewer = self.viewer(request)
        response.media = {"images": [self._view(image, viewer) for image in found]}
        if more:
            link = parameters.next_link(request, self.base_url(request), found[-1].id)
            response.media["images_links"] = [link]

    def _view(self, image: Image, viewer: views.Viewer) -> dict[str, Any]:
        return views.image_summary(image, viewer)

    def _found(self, request: falcon.Request) -> list[Image]:
        since = parameters.moment(request, "changes-since")
        least = {name: parameters.number(request, name, 0) for name in ("minDisk", "minRam")}
        properties = {
            name.removeprefix(_PROPERTY_PREFIX): request.get_param(name)
            for name in request.params
            if name.startswith(_PROPERTY_PREFIX)
        }
        return [
            image
            for image in self._visible(request)
            if all(
                matches(image, request.get_param(name) or "")
                for name, matches in _FILTERS.items()
                if name in request.params
            )
            and all(image.properties.get(name) == value for name, value in properties.items())
            and (since is None or views.image_time(image.updated_at) >= since)
            and image.min_disk_gib >= least["minDisk"]
            and image.min_ram_mib >= least["minRam"]
        ]

    def _visible(self, request: falcon.Request) -> list[Image]:
        caller, found = self.caller(request), self.services.snapshots.images.found
        is_admin = self.services.authorizer.is_admin(caller)
        mine = {"owner": caller.project_id or ""}
        filters: list[dict[str, str]] = [{}] if is_admin else [mine, {"visibility": "public"}]
        return list({image.id: image for one in filters for image in found(one)}.values())


class ImagesDetail(Images):
    """`GET /images/detail`."""

    def _view(self, image: Image, viewer: views.Viewer) -> dict[str, Any]:
        return views.image(image, viewer)


class ImageShow(Resource):
    """`/images/{id}`."""

    def on_get(self, request: falcon.Request, response: falcon.Response, image_id: str) -> None:
        """Show it."""
        response.media = {"image": views.image(self._find(request, image_id), self.viewer(request))}

    def on_delete(self, request: falcon.Request, response: falcon.Response, image_id: str) -> None:
        """Delete it, if it is the caller's own."""
        image, caller = self._find(request, image_id), self.caller(request)
        is_admin = self.services.authorizer.is_admin(caller)
        if not is_admin and image.owner != caller.project_id:
            raise Forbidden("You are not allowed to delete the image.")
        self.services.authorizer.require(caller, "stillframe:images:delete", image.owner)
        self.services.snapshots.images.delete(image.id)
        response.status = falcon.HTTP_204

    def _find(self, request: falcon.Request, image_id: str) -> Image:
        _require_old(request)
        caller = self.caller(request)
        is_admin = self.services.authorizer.is_admin(caller)
        image = self._look(image_id)
        if image is None or not (
            is_admin or image.owner == caller.project_id or image.visibility in _ANYBODYS
        ):
            raise NotFound("Image not found.")
        return image

    def _look(self, image_id: str) -> Image | None:
        try:
            # What is no id must not become a part of Glance's URL.
            image: Image | None = (
                self.services.snapshots.images.show(image_id) if is_uuid(image_id) else None
            )
        except ImageNotFound:
            return None
        return image


def _require_old(request: falcon.Request) -> None:
    version = request.context.version
    if version >= _GONE_SINCE:
        raise NotFound(f"API version '{version}' is not supported on this method.")
