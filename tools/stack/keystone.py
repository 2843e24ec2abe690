# SPDX-License-Identifier: Apache-2.0
"""A private Keystone: PyPI's release in a venv of its own, SQLite, Fernet tokens.

Two projects with a member each, a reader, an administrator, and the service
user that the daemons and Glance work as. That one is no administrator of the
cloud: its role `image_admin` counts in Glance alone, by one line of its policy.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path

from tools.stack.identity import Endpoints
from tools.stack.process import Process, kept_port, listens
from tools.stack.venv import make_venv as _make_venv

#: The release that demo and tests run with.
REQUIREMENTS = ("keystone==30.0.0", "cheroot>=11")
REGION = "RegionOne"
#: The project of the service user.
SERVICE_PROJECT = "service"
SERVICE_USER = "stillframe"
#: (user, project, roles); each user's password is `secret-USER`.
USERS = (
    ("demo", "demo", ["member"]),
    ("demo-reader", "demo", ["reader"]),
    ("other", "other", ["member"]),
    (SERVICE_USER, SERVICE_PROJECT, ["service", "image_admin"]),
)

_START_TIMEOUT_S = 60.0
_PREPARE_TIMEOUT_S = 120.0
_CALL_TIMEOUT_S = 30.0
_HERE = Path(__file__).parent
_CONFIG = """\
[DEFAULT]
log_file = {here}/keystone.log
[database]
connection = sqlite:///{here}/keystone.sqlite
[fernet_tokens]
key_repository = {here}/fernet-keys
[fernet_receipts]
key_repository = {here}/fernet-keys
[credential]
key_repository = {here}/credential-keys
[cache]
enabled = true
backend = dogpile.cache.memory
[identity]
password_hash_rounds = 4
[token]
expiration = {token_life_s}
"""
_CREDENTIALS = """\
auth_type = password
auth_url = {url}
username = {user}
password = secret-{user}
project_name = {project}
user_domain_id = default
project_domain_id = default
region_name = {region}
"""
_GLANCE = """\
[keystone_authtoken]
www_authenticate_uri = {url}
{credentials}\
[paste_deploy]
flavor = keystone
[oslo_policy]
policy_file = policy.yaml
"""
_DAEMONS = """\
[api]
auth_strategy = keystone
[keystone_authtoken]
www_authenticate_uri = {url}
{credentials}\
[glance]
{credentials}\
"""
_CLOUDS = """\
# Stock clients: openstack --os-cloud stillframe-demo server list
clouds:
{clouds}"""
_CLOUD = """\
  stillframe-{user}:
    region_name: {region}
    auth:
      auth_url: {url}
      username: {user}
      password: secret-{user}
      project_name: {project}
      user_domain_id: default
      project_domain_id: default
"""


class Keystone:
    """One identity service; its state in `directory` survives a restart.

    `endpoints` go into the catalogue; a token is good for `token_life_s`.
    """

    glance_policy = "context_is_admin: role:admin or role:image_admin\n"

    def __init__(
        self, directory: Path, venv: Path, endpoints: Endpoints, *, token_life_s: int = 3600
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._venv = venv
        self._endpoints = endpoints
        self.token_life_s = token_life_s
        self.process = Process("keystone", directory)
        self.port = kept_port(directory / "port", self.process)

    @property
    def url(self) -> str:
        """Its URL, with the version."""
        return f"http://127.0.0.1:{self.port}/v3"

    @property
    def glance_options(self) -> str:
        """Further lines of glance-api.conf."""
        return _GLANCE.format(url=self.url, credentials=self.credentials())

    def start(self) -> None:
        """Start it, if it does not run, and wait until it listens."""
        if self.process.pid is None:
            self._configure()
            self.process.start(
                [
                    *(str(self._venv / "bin/python"), "-P", str(_HERE / "serve_wsgi.py")),
                    *("keystone.wsgi.api", str(self.port)),
                ],
                environment={"OS_KEYSTONE_CONFIG_FILES": str(self._config_file)},
            )
        self.process.wait_until(lambda: listens(self.port), _START_TIMEOUT_S)

    def stop(self) -> None:
        """Stop it."""
        self.process.stop()

    def give_tokens_for(self, life_s: int) -> None:
        """Give tokens of another life from now on; those that were given keep theirs."""
        self.token_life_s = life_s
        self.stop()
        self.start()

    def credentials(self) -> str:
        """Return keystoneauth's options for the service user, without their group's name."""
        return _CREDENTIALS.format(
            url=self.url, user=SERVICE_USER, project=SERVICE_PROJECT, region=REGION
        )

    def daemon_options(self, _image_endpoint: str) -> str:
        """Return groups of stillframe.conf; Glance is found in the catalogue."""
        return _DAEMONS.format(url=self.url, credentials=self.credentials())

    def token(self, user: str) -> str:
        """Return a new token of a user of USERS, or of `admin`, for its project."""
        project = next((project for name, project, _ in USERS if name == user), user)
        domain = {"id": "default"}
        who = {"name": user, "domain": domain, "password": f"secret-{user}"}
        auth = {
            "identity": {"methods": ["password"], "password": {"user": who}},
            "scope": {"project": {"name": project, "domain": domain}},
        }
        request = urllib.request.Request(  # noqa: S310
            f"{self.url}/auth/tokens",
            data=json.dumps({"auth": auth}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_CALL_TIMEOUT_S) as response:  # noqa: S310
            return str(response.headers["X-Subject-Token"])

    def clouds(self, _endpoints: Endpoints) -> str:
        """Return clouds.yaml with a member of each project, a reader and an administrator."""
        users = [(user, project) for user, project, _ in USERS if user != SERVICE_USER]
        return _CLOUDS.format(
            clouds="".join(
                _CLOUD.format(user=user, project=project, url=self.url, region=REGION)
                for user, project in [*users, ("admin", "admin")]
            )
        )

    @property
    def _config_file(self) -> Path:
        return self._directory / "keystone.conf"

    def _configure(self) -> None:
        self._config_file.write_text(
            _CONFIG.format(here=self._directory, token_life_s=self.token_life_s)
        )
        wanted, done = json.dumps(self._wanted()), self._directory / "prepared.json"
        if done.exists() and done.read_text() == wanted:
            return
        python, script = str(self._venv / "bin/python"), str(_HERE / "prepare_keystone.py")
        with self.process.log.open("ab") as log:
            subprocess.run(
                [python, "-P", script, "--config-file", str(self._config_file)],
                check=True,
                input=wanted.encode(),
                stdout=log,
                stderr=log,
                timeout=_PREPARE_TIMEOUT_S,
            )
        done.write_text(wanted)

    def _wanted(self) -> dict[str, object]:
        return {
            "admin_password": "secret-admin",
            "region": REGION,
            "projects": sorted({project for _, project, _ in USERS}),
            "users": [
                {"name": user, "password": f"secret-{user}", "project": project, "role": roles}
                for user, project, roles in USERS
            ],
            "endpoints": {
                "identity": self.url,
                "compute": f"{self._endpoints.compute}/v2.1",
                "image": self._endpoints.image,
            },
        }


def make_venv(venv: Path) -> None:
    """Install Keystone into `venv`, unless the wanted release is there."""
    _make_venv(venv, REQUIREMENTS)
