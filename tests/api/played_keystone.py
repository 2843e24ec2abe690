# SPDX-License-Identifier: Apache-2.0
"""A Keystone that is played, the configuration that names it, and requests with its tokens."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from falcon import testing
from keystoneauth1 import loading
from keystonemiddleware import auth_token
from oslo_config import cfg

from common import conf

OWN, OTHER = "p-demo", "p-other"
ROLES = {
    "reader": ["reader"],
    "member": ["member", "reader"],
    "admin": ["admin", "manager", "member", "reader"],
    "service": ["service"],
    "nobody": ["some-other-role"],
}
FOREVER, LONG_AGO = "2999-01-01T00:00:00.000000Z", "2001-01-01T00:00:00.000000Z"


def token(name: str) -> dict[str, Any] | None:
    """Return what Keystone says of a token named ROLE@PROJECT.

    With `!` it has expired, with `?PATH` its application credential may GET that path alone.
    """
    name, _, allowed = name.partition("?")
    role, _, project = name.rstrip("!").partition("@")
    if role not in ROLES:
        return None
    domain = {"id": "default", "name": "Default"}
    scopes: dict[str, dict[str, Any]] = {
        "system": {"system": {"all": True}},
        "domain": {"domain": domain},
        "unscoped": {},
    }
    scope = scopes.get(project, {"project": {"id": project, "name": project, "domain": domain}})
    return {
        "methods": ["password"],
        "user": {"id": f"u-{role}", "name": role, "domain": domain},
        "roles": [{"id": one, "name": one} for one in ROLES[role]],
        "issued_at": LONG_AGO,
        "expires_at": LONG_AGO if name.endswith("!") else FOREVER,
        "catalog": [{"type": "compute", "id": "c", "name": "nova", "endpoints": []}],
        **scope,
        **({"application_credential": _restricted_to(allowed)} if allowed else {}),
    }


def _restricted_to(path: str) -> dict[str, Any]:
    rule = {"id": "one", "service": "compute", "method": "GET", "path": path}
    return {"id": "a", "name": "a", "restricted": True, "access_rules": [rule]}


class PlayedKeystone(BaseHTTPRequestHandler):
    """Logs the service in, and knows the tokens of `token`."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_POST(self) -> None:
        """Let the service itself in."""
        self.rfile.read(int(self.headers["Content-Length"]))
        url = f"{self._base()}/v3"
        endpoint = {"interface": "internal", "url": url, "region_id": "r", "region": "r", "id": "e"}
        mine = token("service@service")
        assert mine is not None
        mine["catalog"] = [{"type": "identity", "id": "k", "name": "k", "endpoints": [endpoint]}]
        self._answer(201, {"token": mine}, {"X-Subject-Token": "service@service"})

    def do_GET(self) -> None:
        """Describe the API, or a token."""
        url = urlsplit(self.path)
        if not url.path.endswith("/auth/tokens"):
            link = {"rel": "self", "href": f"{self._base()}/v3/"}
            version = {"id": "v3.14", "status": "stable", "links": [link]}
            self._answer(200, {"version": version}, {})
            return
        type(self).asked += 1
        name = self.headers["X-Subject-Token"]
        found = token(name)
        if found is None or (name.endswith("!") and "allow_expired" not in parse_qs(url.query)):
            self._answer(404, {"error": {"code": 404, "message": "no", "title": "Not Found"}}, {})
        else:
            self._answer(200, {"token": found}, {"X-Subject-Token": name})

    def _base(self) -> str:
        scheme = "https" if isinstance(self.connection, ssl.SSLSocket) else "http"
        return f"{scheme}://{self.headers['Host']}"

    def _answer(self, status: int, body: Any, headers: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def running(tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve a Keystone, over TLS if asked to; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), PlayedKeystone)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        scheme = "http" if tls is None else "https"
        yield f"{scheme}://localhost:{server.server_port}/v3"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def settings(url: str | None) -> cfg.ConfigOpts:
    """Return a configuration with Keystone's URL, if there is one."""
    settings = cfg.ConfigOpts()
    conf.register(settings)
    settings([], project="stillframe", default_config_files=[], default_config_dirs=[])
    ours = {
        "auth_type": "password",
        "auth_url": url,
        "username": "stillframe",
        "password": "secret",
        "project_name": "service",
        "user_domain_id": "default",
        "project_domain_id": "default",
        "www_authenticate_uri": url,
    }
    if url is not None:
        register_keystone(settings)
        for name, value in ours.items():
            settings.set_override(name, value, group="keystone_authtoken")
    return settings


def register_keystone(settings: cfg.ConfigOpts) -> None:
    """Register the options that the middleware registers itself, so that they can be set."""
    for _, options in auth_token.list_opts():
        settings.register_opts(options, group="keystone_authtoken")
    options = loading.get_auth_plugin_conf_options("password")
    settings.register_opts(options, group="keystone_authtoken")


def ask(
    http: testing.TestClient,
    token: str | None,
    path: str = "/v2.1/servers",
    method: str = "GET",
    body: Any = None,
    **headers: str,
) -> Any:
    """Ask the API something with a token."""
    named = {"OpenStack-API-Version": "compute 2.96"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    if token is not None:
        named["X-Auth-Token"] = token
    return http.simulate_request(method, path, headers=named, json=body)
