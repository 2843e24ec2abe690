# SPDX-License-Identifier: Apache-2.0
"""What clients ask before they ask for anything: limits and extensions."""

from __future__ import annotations

import falcon

from api_service.errors import NotFound
from api_service.microversions import Version
from api_service.quotas import SERVER_METADATA_ITEMS
from api_service.resources import parameters
from api_service.resources.services import Resource

_NONE = -1
#: What Nova's proxies counted, until they went.
_UNTIL: dict[Version, dict[str, int]] = {
    Version(2, 36): {
        "maxTotalFloatingIps": _NONE,
        "totalFloatingIpsUsed": 0,
        "maxSecurityGroups": _NONE,
        "totalSecurityGroupsUsed": 0,
        "maxSecurityGroupRules": _NONE,
    },
    Version(2, 39): {"maxImageMeta": SERVER_METADATA_ITEMS},
    Version(2, 57): {"maxPersonality": 0, "maxPersonalitySize": 0},
}
_ALWAYS = {
    "maxServerMeta": SERVER_METADATA_ITEMS,
    "maxTotalCores": _NONE,
    "maxTotalKeypairs": 0,
    "maxTotalRAMSize": _NONE,
    "maxServerGroups": 0,
    "maxServerGroupMembers": 0,
    "totalServerGroupsUsed": 0,
}


class Limits(Resource):
    """`GET /limits`."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Tell them; how many processors and how much memory is the hypervisors' to bound."""
        flavors = self.services.inventory.sizes_of_project(self._project(request))
        most = self.services.lifecycle.most_instances
        absolute = _ALWAYS | {
            "maxTotalInstances": _NONE if most is None else most,
            "totalCoresUsed": sum(flavor.vcpus for flavor in flavors),
            "totalInstancesUsed": len(flavors),
            "totalRAMUsed": sum(flavor.memory_mib for flavor in flavors),
        }
        for until, counted in _UNTIL.items():
            if request.context.version < until:
                absolute |= counted
        response.media = {"limits": {"rate": [], "absolute": absolute}}

    def _project(self, request: falcon.Request) -> str:
        """Return whose limits are asked for; another project's are not everybody's to see."""
        parameters.require_known(request, {"tenant_id", "reserved"})
        caller = self.caller(request)
        self.services.authorizer.require(caller, "os_compute_api:limits")
        wanted: str = request.get_param("tenant_id") or caller.project_id or ""
        if wanted != caller.project_id:
            self.services.authorizer.require(caller, "os_compute_api:limits:other_project")
        return wanted


#: Alias and name of what there is here of Nova's old extensions.
_EXTENSIONS = {
    "os-admin-actions": "AdminActions",
    "os-aggregates": "Aggregates",
    "os-availability-zone": "AvailabilityZone",
    "os-extended-server-attributes": "ExtendedServerAttributes",
    "os-extended-status": "ExtendedStatus",
    "os-flavor-extra-specs": "FlavorExtraSpecs",
    "os-hypervisors": "Hypervisors",
    "os-instance-actions": "InstanceActions",
    "os-lock-server": "LockServer",
    "os-pause-server": "PauseServer",
    "os-server-usage": "ServerUsage",
    "os-services": "Services",
    "servers": "Servers",
}


class Extensions(Resource):
    """`GET /extensions`: old clients look there for what a cloud can do."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List them."""
        self.services.authorizer.require(self.caller(request), "os_compute_api:extensions")
        response.media = {"extensions": [_extension(alias) for alias in _EXTENSIONS]}

    def on_get_one(self, request: falcon.Request, response: falcon.Response, alias: str) -> None:
        """Show one."""
        self.services.authorizer.require(self.caller(request), "os_compute_api:extensions")
        if alias not in _EXTENSIONS:
            raise NotFound(f"The resource could not be found: extension {alias[:64]}.")
        response.media = {"extension": _extension(alias)}


def _extension(alias: str) -> dict[str, object]:
    return {
        "alias": alias,
        "name": _EXTENSIONS[alias],
        "description": "",
        "links": [],
        "namespace": "http://docs.openstack.org/compute/ext/fake_xml",
        "updated": "2014-12-03T00:00:00Z",
    }
