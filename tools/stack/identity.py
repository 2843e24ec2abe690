# SPDX-License-Identifier: Apache-2.0
"""Who may use a cloud, in both kinds of it: `NoIdentity` here, `keystone.Keystone` with a Keystone.

Each says what the daemons' and Glance's configuration hold for it, gives the
tokens that tests and the demo need, and writes the stock clients' clouds.yaml.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

_CLOUDS = """\
# Stock clients: openstack --os-cloud stillframe-demo server list
clouds:
{clouds}"""
_CLOUD = """\
  stillframe-{name}:
    auth_type: admin_token
    auth:
      endpoint: {api}/v2.1
      token: "{token}"
    compute_endpoint_override: {api}/v2.1
    compute_api_version: "2.1"
    image_endpoint_override: {glance}
    image_api_version: "2"
    # There is no Keystone here; clients look whether it speaks v3 all the same.
    identity_endpoint_override: {api}/v3
    identity_api_version: "3"
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """The URLs that a client needs: of stillframe-api and of the image service."""

    compute: str
    image: str


class Identity(Protocol):
    """What a `Cloud` needs of either kind."""

    @property
    def glance_options(self) -> str:
        """Further lines of glance-api.conf."""

    @property
    def glance_policy(self) -> str:
        """Glance's policy file."""

    def start(self) -> None:
        """Start what runs for it."""

    def stop(self) -> None:
        """Stop it."""

    def daemon_options(self, image_endpoint: str) -> str:
        """Return groups of stillframe.conf; `image_endpoint` is the Glance to use."""

    def token(self, user: str) -> str:
        """Return a token of `demo`, `other` or `admin` that is good for now."""

    def clouds(self, endpoints: Endpoints) -> str:
        """Return the text of clouds.yaml."""


class NoIdentity:
    """A cloud that believes everybody: `auth_strategy = noauth`, and Glance without Keystone."""

    glance_options = "[oslo_policy]\nenforce_scope = false\nenforce_new_defaults = false\n"
    glance_policy = "{}\n"

    def start(self) -> None:
        """Nothing runs for it."""

    def stop(self) -> None:
        """Nothing runs for it."""

    def daemon_options(self, image_endpoint: str) -> str:
        """Return that nobody is asked, and where Glance is."""
        return f"[api]\nauth_strategy = noauth\n[glance]\nendpoint_override = {image_endpoint}\n"

    def token(self, user: str) -> str:
        """Return noauth's own form of a token: USER:PROJECT."""
        return f"{user}:{user}"

    def clouds(self, endpoints: Endpoints) -> str:
        """Return clouds.yaml with a member and an administrator."""
        return _CLOUDS.format(
            clouds="".join(
                _CLOUD.format(
                    name=name,
                    api=endpoints.compute,
                    glance=endpoints.image,
                    token=self.token(name),
                )
                for name in ("demo", "admin")
            )
        )
