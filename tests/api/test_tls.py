# SPDX-License-Identifier: Apache-2.0
"""TLS: served by stillframe-api itself, and spoken to Keystone and Glance."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from falcon import testing
from oslo_config import cfg

from api_service.app import make_application, make_identity
from api_service.cmd import HttpServer
from common import conf
from common.errors import ConfigurationError
from common.glance import ImageService, ImageServiceUnavailable
from common.reports import InstanceRecord
from tests.api.clouds import Cloud
from tests.api.played_keystone import OWN, ask, register_keystone, running, settings
from tests.unit.common.test_broker import self_signed
from tools.stack.process import free_port

WHO = {"X-Auth-Token": "demo:p-demo"}
SILENT_S = 3.0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, its own CA; `key.pem` lies beside it."""
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server_side(certificate: Path) -> ssl.SSLContext:
    """What a server needs to speak TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return context


def options(**values: object) -> cfg.ConfigOpts:
    """Return a configuration with these options of [api]."""
    made = cfg.ConfigOpts()
    conf.register(made)
    made([], project="stillframe", default_config_files=[], default_config_dirs=[])
    for name, value in values.items():
        made.set_override(name, value, group="api")
    return made


@pytest.fixture
def port(cloud: Cloud, certificate: Path) -> Iterator[int]:
    """The port of a real server that speaks TLS."""
    port = free_port()
    key = certificate.with_name("key.pem")
    serving = options(bind_port=port, ssl_cert_file=str(certificate), ssl_key_file=str(key))
    server = HttpServer(cloud.http.app, serving)
    server.start()
    yield port
    server.stop(time.monotonic() + 5)


def test_the_api_serves_https_and_its_links_say_so(
    port: int, certificate: Path, instance: InstanceRecord
) -> None:
    url = f"https://localhost:{port}/v2.1/servers"
    reply = requests.get(url, headers=WHO, verify=str(certificate), timeout=10)
    (server,) = reply.json()["servers"]
    assert server["links"][0]["href"] == f"{url}/{instance.uuid}"


@pytest.mark.parametrize("said", [b"", b"\x16\x03", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_client_that_does_not_shake_hands_keeps_nobody_out(
    port: int, certificate: Path, instance: InstanceRecord, said: bytes
) -> None:
    url = f"https://localhost:{port}/v2.1/servers"
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            silent = socket.create_connection(("127.0.0.1", port), timeout=10)
            stack.callback(silent.close)
            silent.sendall(said)
        reply = requests.get(url, headers=WHO, verify=str(certificate), timeout=SILENT_S)
    assert reply.status_code == requests.codes.ok


@pytest.mark.parametrize("given", ["ssl_cert_file", "ssl_key_file"])
def test_half_of_a_certificate_is_refused_at_the_start(
    cloud: Cloud, certificate: Path, given: str
) -> None:
    with pytest.raises(ConfigurationError, match="go together"):
        HttpServer(cloud.http.app, options(**{given: str(certificate)}))
    missing = str(certificate.with_name("nothing.pem"))
    with pytest.raises(ConfigurationError, match="ssl_cert_file"):
        HttpServer(cloud.http.app, options(ssl_cert_file=missing, ssl_key_file=missing))


@pytest.mark.parametrize("trusts", [True, False])
def test_keystone_is_asked_over_tls_if_its_ca_is_known(
    cloud: Cloud,
    instance: InstanceRecord,
    certificate: Path,
    server_side: ssl.SSLContext,
    trusts: bool,
) -> None:
    with running(server_side) as url:
        named = settings(url)
        register_keystone(named)
        group = "keystone_authtoken"
        named.set_override("http_request_max_retries", 0, group=group)
        if trusts:
            named.set_override("cafile", str(certificate), group=group)
        client = testing.TestClient(make_application(cloud._services(), make_identity(named)))
        status = ask(client, f"member@{OWN}").status_code
    assert status == (200 if trusts else 503)


class TlsGlance(BaseHTTPRequestHandler):
    """Knows no image."""

    def do_GET(self) -> None:
        """Say so."""
        self.send_error(http.client.NOT_FOUND)

    def do_DELETE(self) -> None:
        """Say so."""
        self.send_error(http.client.NOT_FOUND)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def glance(server_side: ssl.SSLContext) -> Iterator[str]:
    """URL of a Glance behind TLS."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), TlsGlance)
    server.daemon_threads = True
    server.socket = server_side.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def images(glance: str, **values: object) -> ImageService:
    """Return Glance as the daemons use it."""
    named = options()
    for name, value in {"endpoint_override": glance, "num_retries": 0, **values}.items():
        named.set_override(name, value, group="glance")
    return ImageService(conf.glance.settings(named))


def test_glance_is_spoken_to_over_tls_if_its_ca_is_known(glance: str, certificate: Path) -> None:
    images(glance, cafile=str(certificate)).delete("3f0a4f6c-0000-4000-8000-000000000000")
    delete: Callable[[str], None] = images(glance).delete
    with pytest.raises(ImageServiceUnavailable):
        delete("3f0a4f6c-0000-4000-8000-000000000000")
