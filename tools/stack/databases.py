# SPDX-License-Identifier: Apache-2.0
"""Private PostgreSQL and MariaDB servers of the distribution's packages, for the tests.

Each has a directory of its own with a unix socket in it, which only its user
and root may enter: no port, no password, no stranger. With a certificate it
listens on the loopback, too, to clients that speak TLS. A server ends with the
thread that started it, however that ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tools.stack.process import Process, free_port

_START_TIMEOUT_S = 60.0
_MAKE_TIMEOUT_S = 120.0
#: Neither server runs as root, and this user exists everywhere.
_NOBODY = 65534
_NAME = "stillframe"


class ProgramMissing(Exception):
    """A program of the server is not installed; the message names it and its package."""


class Server:
    """One server with an empty database; `start` it once, `stop` it for good.

    `certificate` is a PEM file of `localhost` with its `key.pem` beside it.
    """

    name: ClassVar[str]
    #: What ends it at once though clients are connected.
    stops_by: ClassVar[signal.Signals]
    #: What makes the user that comes over TCP.
    _tcp_statements: ClassVar[Sequence[str]] = ()

    def __init__(self, certificate: Path | None = None) -> None:
        self._programs = self._find_programs()
        # Not below a directory that is root's alone, and short: a socket's path is.
        self._here = Path(tempfile.mkdtemp(prefix="stillframe-", dir="/tmp"))
        self._data = self._here / "data"
        self._certificate, self._key = self._here / "certificate.pem", self._here / "key.pem"
        self._port = free_port() if certificate else None
        if certificate:
            shutil.copy(certificate, self._certificate)
            shutil.copy(certificate.with_name("key.pem"), self._key)
            self._key.chmod(0o600)
        if os.geteuid() == 0:
            for path in (self._here, *self._here.iterdir()):
                os.chown(path, _NOBODY, _NOBODY)
        self.process = Process(self.name, self._here)

    @property
    def url(self) -> str:
        """What `[database] connection` is to be."""
        raise NotImplementedError

    @property
    def tcp_url(self) -> str:
        """The same over TCP, for a server with a certificate; says nothing of TLS."""
        raise NotImplementedError

    def start(self) -> None:
        """Make the data directory, start the server in it and make the database."""
        subprocess.run(
            _unprivileged(self._make_command()),
            check=True,
            capture_output=True,
            timeout=_MAKE_TIMEOUT_S,
            cwd=self._here,
        )
        self.process.start(_unprivileged(self._server_command(), dies_by=self.stops_by))
        self.process.wait_until(lambda: self.run("SELECT 1"), _START_TIMEOUT_S)
        for statement in (f"CREATE DATABASE {_NAME}", *self._tcp_statements):
            if not self.run(statement):
                raise RuntimeError(f"{self.name} makes no database:\n{self.process.tail()}")

    def stop(self) -> None:
        """Stop the server and remove everything of it."""
        self.process.signal(self.stops_by)
        self.process.stop()
        shutil.rmtree(self._here)

    def run(self, statement: str) -> bool:
        """Run a statement as the server's administrator; False if that failed."""
        command = [*self._client_command(), statement]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0

    def _find_programs(self) -> dict[str, str]:
        raise NotImplementedError

    def _make_command(self) -> list[str]:
        raise NotImplementedError

    def _server_command(self) -> list[str]:
        raise NotImplementedError

    def _client_command(self) -> list[str]:
        raise NotImplementedError


class PostgreSql(Server):
    """Debian's `postgresql`."""

    name = "postgresql"
    stops_by = signal.SIGINT
    _SETTINGS: ClassVar[Mapping[str, str]] = {
        "listen_addresses": "",
        "fsync": "off",
        "full_page_writes": "off",
        "shared_buffers": "16MB",
        # Another zone than UTC, and than this machine's, hides no mistake.
        "timezone": "Asia/Kathmandu",
    }

    @property
    def url(self) -> str:
        """What `[database] connection` is to be."""
        return f"postgresql+psycopg://{_NAME}@/{_NAME}?host={self._here}"

    @property
    def tcp_url(self) -> str:
        """The same over TCP."""
        return f"postgresql+psycopg://{_NAME}@localhost:{self._port}/{_NAME}"

    def _find_programs(self) -> dict[str, str]:
        newest_first = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        return _programs("postgresql", ("initdb", "postgres", "psql"), newest_first)

    def _make_command(self) -> list[str]:
        how = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        return [self._programs["initdb"], f"--pgdata={self._data}", f"--username={_NAME}", *how]

    def _server_command(self) -> list[str]:
        settings = {**self._SETTINGS, "unix_socket_directories": str(self._here)}
        if self._port:
            who_may = self._here / "hba.conf"
            who_may.write_text("local all all trust\nhostssl all all 127.0.0.1/32 trust\n")
            settings |= {
                "hba_file": str(who_may),
                "listen_addresses": "127.0.0.1",
                "port": str(self._port),
                "ssl": "on",
                "ssl_cert_file": str(self._certificate),
                "ssl_key_file": str(self._key),
            }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [self._programs["postgres"], "-D", str(self._data), *options]

    def _client_command(self) -> list[str]:
        where = [f"--host={self._here}", f"--username={_NAME}", "--dbname=postgres"]
        where += [f"--port={self._port}"] if self._port else []  # a part of the socket's name
        return [self._programs["psql"], "--no-psqlrc", *where, "--command"]


class MariaDb(Server):
    """Debian's `mariadb-server-core` and `mariadb-client-core`, which bring no service along."""

    name = "mariadb"
    stops_by = signal.SIGTERM
    _tcp_statements = (
        f"CREATE USER {_NAME}@'127.0.0.1' REQUIRE SSL",
        f"GRANT ALL ON {_NAME}.* TO {_NAME}@'127.0.0.1'",
    )
    _SETTINGS: ClassVar[Sequence[str]] = (
        "--skip-log-bin",
        "--performance-schema=off",
        "--innodb-buffer-pool-size=16M",
        "--innodb-log-file-size=8M",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-doublewrite=off",
        # As it comes from its makers: what is stored must not hang on it.
        "--character-set-server=latin1",
        "--default-time-zone=+05:45",
    )

    @property
    def url(self) -> str:
        """What `[database] connection` is to be."""
        return f"mysql+pymysql://root@localhost/{_NAME}?unix_socket={self._socket}"

    @property
    def tcp_url(self) -> str:
        """The same over TCP."""
        return f"mysql+pymysql://{_NAME}@localhost:{self._port}/{_NAME}"

    @property
    def _socket(self) -> Path:
        return self._here / "socket"

    def _find_programs(self) -> dict[str, str]:
        names = ("mariadb-install-db", "mariadbd", "mariadb", "my_print_defaults")
        places = [Path("/usr/sbin"), Path("/usr/bin")]
        return _programs("mariadb-server-core and mariadb-client-core", names, places)

    def _make_command(self) -> list[str]:
        how = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        data = f"--datadir={self._data}"
        smaller = [one for one in self._SETTINGS if one.startswith("--innodb")]
        return [self._programs["mariadb-install-db"], "--no-defaults", data, *how, *smaller]

    def _server_command(self) -> list[str]:
        where = [f"--datadir={self._data}", f"--socket={self._socket}", f"--tmpdir={self._here}"]
        network = ["--skip-networking"]
        if self._port:
            network = ["--bind-address=127.0.0.1", f"--port={self._port}", "--skip-name-resolve"]
            network += [f"--ssl-cert={self._certificate}", f"--ssl-key={self._key}"]
        return [self._programs["mariadbd"], "--no-defaults", *where, *network, *self._SETTINGS]

    def _client_command(self) -> list[str]:
        where = [f"--socket={self._socket}", "--user=root"]
        return [self._programs["mariadb"], "--no-defaults", *where, "--execute"]


SERVERS: Mapping[str, type[Server]] = {kind.name: kind for kind in (PostgreSql, MariaDb)}


def _programs(package: str, names: Sequence[str], places: Sequence[Path]) -> dict[str, str]:
    """Return where each program is; raise ProgramMissing."""
    found = {}
    for name in names:
        here = [str(place / name) for place in places if os.access(place / name, os.X_OK)]
        if not here:
            raise ProgramMissing(f"there is no {name} here: install {package} (tools/install test)")
        found[name] = here[0]
    return found


def _unprivileged(command: Sequence[str], dies_by: signal.Signals | None = None) -> list[str]:
    """Return the command as an ordinary user runs it; `dies_by` comes when its parent ends."""
    user = ["--reuid", str(_NOBODY), "--regid", str(_NOBODY), "--clear-groups"]
    options = user if os.geteuid() == 0 else []
    if dies_by is not None:
        options = [*options, "--pdeathsig", dies_by.name.removeprefix("SIG")]
    return ["setpriv", *options, "--", *command] if options else list(command)
