# SPDX-License-Identifier: Apache-2.0
"""`/flavors`: the sizes of the instances that the caller sees; stock clients ask for them."""

from __future__ import annotations

import falcon

from api_service import views
from api_service.errors import NotFound
from api_service.resources.services import Resource
from common.messages import Flavor


class Flavors(Resource):
    """`GET /flavors`."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List them."""
        viewer = self.viewer(request)
        response.media = {"flavors": [self._view(one, viewer) for one in self._known(request)]}

    def _view(self, flavor: Flavor, viewer: views.Viewer) -> dict[str, object]:
        return views.flavor_summary(flavor, viewer)

    def _known(self, request: falcon.Request, name: str | None = None) -> list[Flavor]:
        caller = self.caller(request)
        is_admin = self.services.authorizer.is_admin(caller)
        return self.services.inventory.flavors(
            project_id=None if is_admin else caller.project_id,
            name=name,
            limit=self.services.max_limit,
        )


class FlavorsDetail(Flavors):
    """`GET /flavors/detail`."""

    def _view(self, flavor: Flavor, viewer: views.Viewer) -> dict[str, object]:
        return views.flavor(flavor, viewer)


class FlavorShow(Flavors):
    """`GET /flavors/{id}` and its extra specs, of which there are none."""

    def on_get(  # type: ignore[override] # one more URL parameter
        self, request: falcon.Request, response: falcon.Response, flavor_id: str
    ) -> None:
        """Show one."""
        response.media = {
            "flavor": views.flavor(self._find(request, flavor_id), self.viewer(request))
        }

    def on_get_extra_specs(
        self, request: falcon.Request, response: falcon.Response, flavor_id: str
    ) -> None:
        """List its extra specs."""
        self._find(request, flavor_id)
        response.media = {"extra_specs": {}}

    def _find(self, request: falcon.Request, flavor_id: str) -> Flavor:
        # Not every database takes a NUL; one may find names alike that differ in case.
        known = self._known(request, flavor_id) if "\x00" not in flavor_id else []
        found = [one for one in known if one.name == flavor_id]
        if not found:
            raise NotFound(f"Flavor {flavor_id} could not be found.")
        return found[0]
