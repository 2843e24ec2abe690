# SPDX-License-Identifier: Apache-2.0
"""Private PostgreSQL and MariaDB servers of the distribution's packages, for the tests.

Each has a directory of its own with a unix socket in it, which only its user
and root may enter: no port, no password, no stranger. A server ends with the
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

from tools.stack.process import Process

_START_TIMEOUT_S = 60.0
_MAKE_TIMEOUT_S = 120.0
#: Neither server runs as root, and this user exists everywhere.
_NOBODY = 65534
_NAME = "stillframe"


class ProgramMissing(Exception):
    """A program of the server is not installed; the message names it and its package."""


class Server:
    """One server with an empty database; `start` it once, `stop` it for good."""

    name: ClassVar[str]
    #: What ends it at once though clients are connected.
    stops_by: ClassVar[signal.Signals]

    def __init__(self) -> None:
        self._programs = self._find_programs()
        # Not below a directory that is root's alone, and short: a socket's path is.
        self._here = Path(tempfile.mkdtemp(prefix="stillframe-", dir="/tmp"))
        self._data = self._here / "data"
        if os.geteuid() == 0:
            os.chown(self._here, _NOBODY, _NOBODY)
        self.process = Process(self.name, self._here)

    @property
    def url(self) -> str:
        """What `[database] connection` is to be."""
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
        if not self.run(f"CREATE DATABASE {_NAME}"):
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

    def _find_programs(self) -> dict[str, str]:
        newest_first = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        return _programs("postgresql", ("initdb", "postgres", "psql"), newest_first)

    def _make_command(self) -> list[str]:
        how = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        return [self._programs["initdb"], f"--pgdata={self._data}", f"--username={_NAME}", *how]

    def _server_command(self) -> list[str]:
        settings = {**self._SETTINGS, "unix_socket_directories": str(self._here)}
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [self._programs["postgres"], "-D", str(self._data), *options]

    def _client_command(self) -> list[str]:
        where = [f"--host={self._here}", f"--username={_NAME}", "--dbname=postgres"]
        return [self._programs["psql"], "--no-psqlrc", *where, "--command"]


class MariaDb(Server):
    """Debian's `mariadb-server-core` and `mariadb-client-core`, which bring no service along."""

    name = "mariadb"
    stops_by = signal.SIGTERM
    _SETTINGS: ClassVar[Sequence[str]] = (
        "--skip-networking",
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
        return [self._programs["mariadbd"], "--no-defaults", *where, *self._SETTINGS]

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
