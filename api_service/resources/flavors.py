# SPDX-License-Identifier: Apache-2.0
"""`/flavors`: the sizes of new servers, and of the instances that the caller sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon
from oslo_utils import strutils

from api_service import views
from api_service.errors import BadRequest, NotFound
from api_service.resources import parameters
from api_service.resources.services import Resource
from common.reports import Flavor

_NUMBER_MAX_DIGITS = 18
#: What Nova sorts by, and ours; what is alike in all of ours sorts nothing.
_SORT_KEYS: dict[str, Callable[[Flavor], Any]] = {
    **dict.fromkeys(
        """
        created_at description disabled is_public rxtx_factor updated_at vcpu_weight
        """.split(),  # noqa: SIM905 # as words it can be read
        lambda _: 0,
    ),
    "ephemeral_gb": lambda flavor: flavor.ephemeral_gib,
    "flavorid": lambda flavor: flavor.name,
    "id": lambda flavor: flavor.name,
    "memory_mb": lambda flavor: flavor.memory_mib,
    "name": lambda flavor: flavor.name,
    "root_gb": lambda flavor: flavor.disk_gib,
    "swap": lambda flavor: flavor.swap_mib,
    "vcpus": lambda flavor: flavor.vcpus,
}
_PARAMETERS = parameters.PAGING | {"sort_key", "sort_dir", "is_public", "minDisk", "minRam"}


class Flavors(Resource):
    """`GET /flavors`."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List them, a page at a time."""
        parameters.require_known(request, _PARAMETERS)
        viewer, max_limit = self.viewer(request), self.services.max_limit
        found, more = parameters.page(
            request, self._asked(request), lambda flavor: flavor.name, max_limit
        )
        response.media = {"flavors": [self._view(one, viewer) for one in found]}
        if more:
            link = parameters.next_link(request, self.base_url(request), found[-1].name)
            response.media["flavors_links"] = [link]

    def _asked(self, request: falcon.Request) -> list[Flavor]:
        """Return those that are asked for, in the order that is."""
        key = parameters.one_of(request, "sort_key", _SORT_KEYS, "flavorid")
        direction = parameters.one_of(request, "sort_dir", ("asc", "desc"), "asc")
        min_disk, min_ram = (_least(request, name) for name in ("minDisk", "minRam"))
        wants_public = _wants_public(request)
        known = self._known(request) if wants_public or not self._is_admin(request) else []
        found = [one for one in known if one.disk_gib >= min_disk and one.memory_mib >= min_ram]
        by_name = sorted(found, key=lambda flavor: flavor.name)
        return sorted(by_name, key=_SORT_KEYS[key], reverse=direction == "desc")

    def _is_admin(self, request: falcon.Request) -> bool:
        return self.services.authorizer.is_admin(self.caller(request))

    def _view(self, flavor: Flavor, viewer: views.Viewer) -> dict[str, object]:
        return views.flavor_summary(flavor, viewer)

    def _known(self, request: falcon.Request, name: str | None = None) -> list[Flavor]:
        """Return the sizes that new servers may have, and then those that servers have."""
        offered = self.services.lifecycle.flavors
        project_id = self.caller(request).project_id
        found = self.services.inventory.flavors(
            project_id=None if self._is_admin(request) else project_id,
            name=name,
            limit=self.services.max_limit,
        )
        return [
            *(one for one in offered.values() if name in (None, one.name)),
            *(one for one in found if one.name not in offered),
        ]


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

    def on_get_extra_spec(
        self, request: falcon.Request, _response: falcon.Response, flavor_id: str, key: str
    ) -> None:
        """Show one of them, which is not there."""
        self._find(request, flavor_id)
        raise NotFound(f"Flavor {flavor_id} has no extra specs with key {key[:255]}.")

    def _find(self, request: falcon.Request, flavor_id: str) -> Flavor:
        # Not every database takes a NUL; one may find names alike that differ in case.
        known = self._known(request, flavor_id) if "\x00" not in flavor_id else []
        found = [one for one in known if one.name == flavor_id]
        if not found:
            raise NotFound(f"Flavor {flavor_id} could not be found.")
        return found[0]


def _wants_public(request: falcon.Request) -> bool:
    """Tell whether public ones are asked for, as all of ours are; raise BadRequest for nonsense."""
    text = request.get_param("is_public")
    if text is None or text.lower() == "none":
        return True
    try:
        return bool(strutils.bool_from_string(text, strict=True))
    except ValueError:
        raise BadRequest(f"Invalid is_public filter [{text[:64]}]") from None


def _least(request: falcon.Request, name: str) -> int:
    text = request.get_param(name) or "0"
    if not text.removeprefix("-").isdecimal() or len(text) > _NUMBER_MAX_DIGITS:
        raise BadRequest(f"Invalid {name} filter [{text[:64]}]")
    return int(text)
