# SPDX-License-Identifier: Apache-2.0
"""What the broker check makes of a transport URL (the rest is in tests/functional)."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.broker import agent_queues, check, kombu_tls, kombu_urls
from common.errors import BrokerUnavailable, ConfigurationError

TIMEOUT_S = 1.0
#: What a client of AMQP 0-9-1 says first.
GREETING = b"AMQP\x00\x00\x09\x01"


@contextlib.contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port of the loopback whose clients are accepted and then left to `serve`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client:
                        serve(client)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        # A blocked accept() does not notice that its socket is closed; this it does.
        server.shutdown(socket.SHUT_RDWR)
        thread.join(30)


def read_until_closed(client: socket.socket) -> None:
    """Take everything and answer nothing."""
    client.settimeout(30)
    while client.recv(4096):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of `localhost`; its key lies beside it as `key.pem`."""
    return self_signed(tmp_path_factory.mktemp("tls"))


def self_signed(directory: Path) -> Path:
    """Make a certificate that nobody else has signed."""
    path = directory / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(path.with_name("key.pem")), "-out", str(path)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return path


def test_each_host_of_a_cluster_gets_a_url_of_its_own() -> None:
    url = "rabbit://u:p@a:5672,u:p@b:5673/cloud?ssl=0"
    assert kombu_urls(url) == ["amqp://u:p@a:5672/cloud", "amqp://u:p@b:5673/cloud"]


def test_options_of_the_url_are_none_of_its_last_host_s() -> None:
    assert kombu_urls("rabbit://u:p@a:5672?ssl=0") == ["amqp://u:p@a:5672"]


def test_another_transport_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match="must begin with rabbit://"):
        kombu_urls("fake://")


def test_the_queues_of_a_cloud_are_the_api_s_and_each_agent_s() -> None:
    assert agent_queues(["n1"]) == ["stillframe-api", "stillframe-compute.n1"]


def test_a_broker_that_is_not_there_is_told_without_the_password() -> None:
    with pytest.raises(BrokerUnavailable) as raised:
        check("rabbit://u:secret@127.0.0.1:1/", [], timeout_s=1)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("options", [{}, {"ssl": True}], ids=["plain", "TLS"])
def test_a_broker_that_accepts_and_never_answers_is_waited_for_no_longer_than_told(
    options: dict[str, object],
) -> None:
    with listener(read_until_closed) as port:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="timed out"):
            check(f"rabbit://u:p@127.0.0.1:{port}/", [], TIMEOUT_S, options)
        assert time.monotonic() - began < 3 * TIMEOUT_S


def test_a_host_of_a_cluster_that_hangs_leaves_time_for_the_others() -> None:
    seen = threading.Event()

    def greeted(client: socket.socket) -> None:
        if client.recv(len(GREETING)) == GREETING:
            seen.set()

    with listener(read_until_closed) as hangs, listener(greeted) as answers:
        url = f"rabbit://u:p@127.0.0.1:{hangs},u:p@127.0.0.1:{answers}/"
        with pytest.raises(BrokerUnavailable) as raised:
            check(url, [], TIMEOUT_S)
    assert seen.is_set()
    assert f":{hangs}" in str(raised.value)


def test_a_broker_that_hangs_after_it_let_us_in_is_waited_for_no_longer_than_told() -> None:
    with listener(let_in_and_hang) as port:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="timed out"):
            check(f"rabbit://u:p@127.0.0.1:{port}/", ["q"], TIMEOUT_S)
        assert time.monotonic() - began < 3 * TIMEOUT_S


def let_in_and_hang(client: socket.socket) -> None:
    """Say what a broker says until a connection is open, then half of an answer, then nothing."""
    client.settimeout(30)
    client.recv(len(GREETING))
    table = b"\x00\x00\x00\x00"
    words = [b"\x00\x00\x00\x05PLAIN", b"\x00\x00\x00\x05en_US"]
    client.sendall(method(10, 10, b"\x00\x09" + table + b"".join(words)))
    client.recv(4096)
    client.sendall(method(10, 30, b"\x07\xff\x00\x02\x00\x00\x00\x00"))
    client.recv(4096)
    client.sendall(method(10, 41, b"\x00"))
    client.recv(4096)
    client.sendall(b"\x01\x00\x01\x00\x00\x00")
    read_until_closed(client)


def method(class_id: int, method_id: int, arguments: bytes) -> bytes:
    """Return a method of AMQP on channel 0 as a frame."""
    payload = class_id.to_bytes(2) + method_id.to_bytes(2) + arguments
    return b"\x01\x00\x00" + len(payload).to_bytes(4) + payload + b"\xce"


@pytest.mark.parametrize(
    ("host", "trusted", "words"),
    [
        ("localhost", True, None),
        ("127.0.0.1", True, "certificate is not valid for '127.0.0.1'"),
        ("localhost", False, "certificate verify failed"),
    ],
    ids=["its own name", "another name", "another CA"],
)
def test_tls_is_spoken_and_the_server_verified_where_the_daemons_do(
    certificate: Path, tmp_path: Path, host: str, trusted: bool, words: str | None
) -> None:
    seen = threading.Event()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, certificate.with_name("key.pem"))

    def serve(client: socket.socket) -> None:
        client.settimeout(30)
        with contextlib.suppress(OSError), server.wrap_socket(client, server_side=True) as tls:
            if tls.recv(len(GREETING)) == GREETING:
                seen.set()

    ca = certificate if trusted else self_signed(tmp_path)
    options = {"ssl": True, "ssl_ca_file": str(ca)}
    with listener(serve) as port, pytest.raises(BrokerUnavailable, match=words):
        check(f"rabbit://u:p@{host}:{port}/", [], TIMEOUT_S, options)
    assert seen.is_set() == (words is None)


def test_every_option_of_tls_reaches_the_connection(certificate: Path) -> None:
    file = str(certificate)
    options = {
        "ssl": True,
        "ssl_version": "TLSv1_2",
        "ssl_ca_file": file,
        "ssl_cert_file": file,
        "ssl_key_file": file,
    }
    assert kombu_tls("rabbit://a/", options) == {
        "ssl_version": ssl.PROTOCOL_TLSv1_2,
        "ca_certs": file,
        "certfile": file,
        "keyfile": file,
        "cert_reqs": ssl.CERT_REQUIRED,
    }


def test_options_of_the_url_go_before_the_configuration_s() -> None:
    assert kombu_tls("rabbit://a/?ssl=1", {"ssl": False}) is True
    assert kombu_tls("rabbit://a/?ssl=0", {"ssl": True}) is False


@pytest.mark.parametrize(
    ("name", "value"), [("ssl_ca_file", "/nowhere/ca.pem"), ("ssl_version", "SSLv9")]
)
def test_an_option_of_tls_that_cannot_work_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} = {value}"):
        kombu_tls("rabbit://a/", {"ssl": True, name: value})
