# SPDX-License-Identifier: Apache-2.0
"""`POST /servers/{id}/action`: the body's only key names the action. ACTIONS says what does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import falcon
from jsonschema import Draft202012Validator

from api_service import powers, rebuilds, schemas, views
from api_service.backups import BackupWish
from api_service.errors import BadRequest
from api_service.microversions import Version
from api_service.rebuilds import RebuildWish
from api_service.resources.servers import fields_of
from api_service.resources.services import Resource
from api_service.schemas.rebuild import rebuild, require_possible
from api_service.snapshots import SnapshotWish
from common.states import LockedBy

#: From here on the image's id stands in the body, before in the Location header.
_IMAGE_ID_IN_BODY = Version(2, 45)
_LOCKED_REASON = Version(2, 73)
#: What Nova does with a server and Stillframe does not.
_NOVAS_ONLY = frozenset(
    {
        "addFloatingIp",
        "addSecurityGroup",
        "changePassword",
        "confirmResize",
        "evacuate",
        "forceDelete",
        "injectNetworkInfo",
        "migrate",
        "os-getConsoleOutput",
        "os-getRDPConsole",
        "os-getSPICEConsole",
        "os-getSerialConsole",
        "os-getVNCConsole",
        "os-migrateLive",
        "removeFloatingIp",
        "removeSecurityGroup",
        "rescue",
        "resetNetwork",
        "resize",
        "restore",
        "resume",
        "revertResize",
        "shelve",
        "shelveOffload",
        "suspend",
        "trigger_crash_dump",
        "unrescue",
        "unshelve",
    }
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One action that was asked for."""

    request: falcon.Request
    response: falcon.Response
    server_id: str
    body: dict[str, Any]


class ServerAction(Resource):
    """One URL for everything that is done to a server."""

    def on_post(self, request: falcon.Request, response: falcon.Response, server_id: str) -> None:
        """Find the action and do it: 202, whatever it is."""
        body = schemas.read_body(request)
        if len(body) != 1:
            raise BadRequest("Malformed request body: it must name exactly one action.")
        (name,) = body
        action = ACTIONS.get(name)
        if action is None:
            if name in _NOVAS_ONLY:
                # Nova looks for the server before it looks at what is to be done with it.
                self.visible_instance(request, server_id, "os_compute_api:servers:show")
            raise BadRequest(f"There is no such action: {name[:64]}")
        response.status = falcon.HTTP_202
        action(self, Asked(request=request, response=response, server_id=server_id, body=body))

    def create_image(self, asked: Asked) -> None:
        """Take a snapshot, and tell the image's id the way the version does."""
        schemas.validate(schemas.CREATE_IMAGE, asked.body)
        rule = "os_compute_api:servers:create_image"
        instance = self.visible_instance(asked.request, asked.server_id, rule)
        image = asked.body["createImage"]
        wish = SnapshotWish.of(image["name"], image.get("metadata", {}))
        self.services.authorizer.require_limit(
            self.caller(asked.request), wish.options.bandwidth_limit, instance.project_id
        )
        job = self.services.snapshots.request(self.caller(asked.request), instance, wish)
        self.services.dispatcher.poke(job.id)
        self._tell_image(asked, job.image_id, "images")

    def create_backup(self, asked: Asked) -> None:
        """Take a snapshot that takes the place of older ones of its type."""
        schemas.validate(schemas.CREATE_BACKUP, asked.body)
        rule = "os_compute_api:os-create-backup"
        instance = self.visible_instance(asked.request, asked.server_id, rule)
        backup = asked.body["createBackup"]
        rotation = int(backup["rotation"])
        wish = BackupWish.of(
            backup["name"], backup["backup_type"], rotation, backup.get("metadata", {})
        )
        caller = self.caller(asked.request)
        limit = wish.options.bandwidth_limit
        self.services.authorizer.require_limit(caller, limit, instance.project_id)
        job = self.services.backups.request(caller, instance, wish)
        self.services.dispatcher.poke(job.id)
        # Of one that will not stay Nova tells no place; from 2.45 on its id all the same.
        self._tell_image(asked, job.image_id, "v2.1/images" if rotation else None)

    def _tell_image(self, asked: Asked, image_id: str, place: str | None) -> None:
        """Tell the image's id the way the version does; before 2.45 by its place, if it has one."""
        if asked.request.context.version >= _IMAGE_ID_IN_BODY:
            asked.response.media = {"image_id": image_id}
        elif place is not None:
            asked.response.location = f"{self.base_url(asked.request)}/{place}/{image_id}"

    def rebuild(self, asked: Asked) -> None:
        """Make its disk anew of an image, and answer with the server as it is from now on."""
        schemas.validate(rebuild(asked.request.context.version), asked.body)
        wanted = asked.body["rebuild"]
        require_possible(wanted)
        instance = self.visible_instance(asked.request, asked.server_id, rebuilds.RULE)
        caller = self.caller(asked.request)
        is_admin = self.services.authorizer.is_admin(caller)
        powers.require_unlocked(instance, is_admin=is_admin)
        wish = RebuildWish(
            image_id=wanted["imageRef"],
            changes=fields_of(wanted),
            metadata=wanted.get("metadata"),
        )
        job = self.services.rebuilds.request(caller, instance, wish, is_admin=is_admin)
        changed = self.visible_instance(asked.request, asked.server_id, rebuilds.RULE)
        self.services.dispatcher.poke(job.id)
        # The instance has its new image when it runs from it; the answer names it already.
        will_be = dataclasses.replace(changed, image_ref=wish.image_id)
        body = views.rebuilt_server(will_be, self.viewer(asked.request))
        asked.response.media = {"server": body}
        asked.response.location = body["links"][0]["href"]

    def reboot(self, asked: Asked) -> None:
        """Switch it off and on again."""
        schemas.validate(schemas.REBOOT, asked.body)
        self.change_power(asked, powers.REBOOTS[asked.body["reboot"]["type"].upper()])

    def lock(self, asked: Asked) -> None:
        """Keep everybody but administrators from changing it."""
        may_say_why = asked.request.context.version >= _LOCKED_REASON
        schemas.validate(schemas.LOCK_WITH_REASON if may_say_why else schemas.LOCK, asked.body)
        instance = self.visible_instance(
            asked.request, asked.server_id, "os_compute_api:os-lock-server:lock"
        )
        why = asked.body["lock"] if may_say_why else None
        self.services.powers.lock(
            self.caller(asked.request), instance, why.get("locked_reason") if why else None
        )

    def unlock(self, asked: Asked) -> None:
        """Take the lock away."""
        schemas.validate(schemas.UNLOCK, asked.body)
        rule = "os_compute_api:os-lock-server:unlock"
        instance = self.visible_instance(asked.request, asked.server_id, rule)
        caller = self.caller(asked.request)
        if instance.locked_by == LockedBy.ADMIN:
            self.services.authorizer.require(
                caller,
                "os_compute_api:os-lock-server:unlock:unlock_override",
                instance.project_id,
            )
        self.services.powers.unlock(caller, instance)

    def reset_state(self, asked: Asked) -> None:
        """Free an instance that is stuck."""
        schemas.validate(schemas.RESET_STATE, asked.body)
        rule = "os_compute_api:os-admin-actions:reset_state"
        instance = self.visible_instance(asked.request, asked.server_id, rule)
        in_error = asked.body["os-resetState"]["state"] == "error"
        caller = self.caller(asked.request)
        held_by = self.services.powers.reset_state(caller, instance, in_error=in_error)
        if held_by is not None:
            self.services.dispatcher.poke(held_by)

    def change_power(self, asked: Asked, change: powers.Change) -> None:
        """Ask for a change of power, unless the instance is locked for the caller."""
        instance = self.visible_instance(asked.request, asked.server_id, change.rule)
        caller = self.caller(asked.request)
        is_admin = self.services.authorizer.is_admin(caller)
        powers.require_unlocked(instance, is_admin=is_admin)
        job = self.services.powers.request(caller, instance, change)
        self.services.dispatcher.poke(job.id)


Action = Callable[[ServerAction, Asked], None]


def _power(change: powers.Change, schema: Draft202012Validator) -> Action:
    def act(resource: ServerAction, asked: Asked) -> None:
        schemas.validate(schema, asked.body)
        resource.change_power(asked, change)

    return act


ACTIONS: dict[str, Action] = {
    "createImage": ServerAction.create_image,
    "createBackup": ServerAction.create_backup,
    "pause": _power(powers.PAUSE, schemas.PAUSE),
    "unpause": _power(powers.UNPAUSE, schemas.UNPAUSE),
    "os-start": _power(powers.START, schemas.START),
    "os-stop": _power(powers.STOP, schemas.STOP),
    "reboot": ServerAction.reboot,
    "lock": ServerAction.lock,
    "unlock": ServerAction.unlock,
    "os-resetState": ServerAction.reset_state,
    "rebuild": ServerAction.rebuild,
}
