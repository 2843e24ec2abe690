# SPDX-License-Identifier: Apache-2.0
"""TLS to PostgreSQL and MariaDB, as `[database] connection` says it (docs/installation.md)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from oslo_db import exception as db_errors

from api_service.store.engine import Database, newest_version
from tests.unit.common.test_broker import self_signed
from tools.stack.databases import SERVERS, ProgramMissing, Server

#: What the URL says so that the server must prove who it is.
VERIFIED = {
    "postgresql": "sslmode=verify-full&sslrootcert={ca}",
    "mariadb": "ssl_ca={ca}",
}
#: What tells that a connection is encrypted: empty where it is not.
CIPHER = {
    "postgresql": "SELECT cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
    "mariadb": (
        "SELECT variable_value FROM information_schema.session_status"
        " WHERE variable_name = 'SSL_CIPHER'"
    ),
}
PLAIN = {"postgresql": "sslmode=disable", "mariadb": "ssl_disabled=true"}
ONCE = {"max_retries": 1, "retry_interval": 0}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The servers' certificate for localhost, which is its own CA."""
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module", params=sorted(VERIFIED))
def server(request: pytest.FixtureRequest, certificate: Path) -> Iterator[Server]:
    """A server that over TCP takes TLS alone."""
    try:
        server = SERVERS[request.param](certificate)
    except ProgramMissing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    try:
        server.start()
        yield server
    finally:
        server.stop()


def url(server: Server, ca: Path, host: str = "localhost") -> str:
    """Return the connection that trusts a CA."""
    where = server.tcp_url.replace("localhost", host)
    return f"{where}?{VERIFIED[server.name].format(ca=ca)}"


def test_the_schema_is_made_and_read_over_tls(server: Server, certificate: Path) -> None:
    database = Database(url(server, certificate))
    try:
        database.sync()
        assert database.version() == newest_version()
        with database.read() as session:
            assert session.execute(sa.text(CIPHER[server.name])).scalar_one()
    finally:
        database.engine.dispose()


def test_a_server_of_another_ca_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(db_errors.DBError, match=r"(?i)certificate verify failed"):
        Database(url(server, self_signed(tmp_path)), **ONCE)


def test_a_server_of_another_name_is_refused(server: Server, certificate: Path) -> None:
    with pytest.raises(db_errors.DBError, match=r"(?i)127\.0\.0\.1"):
        Database(url(server, certificate, host="127.0.0.1"), **ONCE)


def test_a_server_that_demands_tls_is_not_spoken_to_without(server: Server) -> None:
    with pytest.raises(db_errors.DBError):
        Database(f"{server.tcp_url}?{PLAIN[server.name]}", **ONCE)
