# SPDX-License-Identifier: Apache-2.0
"""Makes a Keystone's database and keys and fills it as the JSON on standard input says.

    prepare_keystone.py --config-file FILE

Run in Keystone's own venv, in one process: each of keystone-manage's commands
spends seconds on imports. What is there already stays, so it may run again;
only the URLs of endpoints are set anew. Projects get the ids that they are
given, which Keystone's REST API does not allow.
"""

import contextlib
import json
import sys
import uuid
from typing import Any

import keystone.server
from keystone import exception
from keystone.cmd.bootstrap import Bootstrapper
from keystone.common.fernet_utils import FernetUtils
from keystone.common.provider_api import ProviderAPIs
from keystone.common.sql import upgrades
from keystone.conf import CONF

DOMAIN = "default"


def make_keys() -> None:
    """Make the keys that tokens are signed with."""
    group = CONF.fernet_tokens
    keys = FernetUtils(group.key_repository, group.max_active_keys, "fernet_tokens")
    keys.create_key_directory()
    if keys.validate_key_repository(requires_write=True):
        keys.initialize_key_repository()


def fill(wanted: dict[str, Any]) -> None:
    """Make projects, users, their roles, and the catalogue."""
    bootstrapper = Bootstrapper()
    bootstrapper.admin_username = bootstrapper.project_name = "admin"
    bootstrapper.admin_password = wanted["admin_password"]
    bootstrapper.admin_role_name = "admin"
    bootstrapper.region_id = wanted["region"]
    bootstrapper.service_name = "keystone"
    bootstrapper.public_url = bootstrapper.internal_url = wanted["endpoints"]["identity"]
    bootstrapper.bootstrap()
    for project in wanted["projects"]:
        make_project(project)
    roles = {role["name"]: role["id"] for role in ProviderAPIs.role_api.list_roles()}
    for user in wanted["users"]:
        make_user(roles, **user)
    for kind, url in wanted["endpoints"].items():
        if kind != "identity":
            make_endpoint(kind, url, wanted["region"])


def make_project(project: str) -> None:
    """Make a project whose id is its name."""
    record = {"id": project, "name": project, "domain_id": DOMAIN, "enabled": True}
    with contextlib.suppress(exception.Conflict):
        ProviderAPIs.resource_api.create_project(project, record)


def make_user(
    roles: dict[str, str], name: str, password: str, project: str, role: list[str]
) -> None:
    """Make a user who has a role in a project; a role that is not Keystone's own is made, too."""
    record = {"name": name, "password": password, "domain_id": DOMAIN, "enabled": True}
    try:
        user = ProviderAPIs.identity_api.get_user_by_name(name, DOMAIN)
    except exception.UserNotFound:
        user = ProviderAPIs.identity_api.create_user(record)
    for one in role:
        if one not in roles:
            roles[one] = uuid.uuid4().hex
            ProviderAPIs.role_api.create_role(roles[one], {"id": roles[one], "name": one})
        with contextlib.suppress(exception.Conflict):
            ProviderAPIs.assignment_api.add_role_to_user_and_project(
                user["id"], project, roles[one]
            )


def make_endpoint(kind: str, url: str, region: str) -> None:
    """Put a service into the catalogue."""
    catalog = ProviderAPIs.catalog_api
    try:
        catalog.get_service(kind)
    except exception.ServiceNotFound:
        catalog.create_service(kind, {"id": kind, "type": kind, "name": kind, "enabled": True})
    for interface in ("public", "internal"):
        name = f"{kind}-{interface}"
        record: dict[str, Any] = {"id": name, "interface": interface, "url": url}
        record |= {"service_id": kind, "enabled": True, "region_id": region}
        try:
            catalog.get_endpoint(name)
            catalog.update_endpoint(name, record)
        except exception.EndpointNotFound:
            catalog.create_endpoint(name, record)


keystone.server.configure()  # it reads the command line
upgrades.offline_sync_database_to_version()
make_keys()
fill(json.load(sys.stdin))
