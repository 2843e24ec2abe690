# SPDX-License-Identifier: Apache-2.0
"""A private Glance: PyPI's release in a venv of its own, SQLite, a file store."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tools.stack.identity import Identity, NoIdentity
from tools.stack.process import Process, kept_port, listens
from tools.stack.venv import make_venv as _make_venv

#: The release that demo and tests run with.
REQUIREMENTS = ("glance==33.0.0", "cheroot>=11")
_START_TIMEOUT_S = 60.0
_SERVE = Path(__file__).with_name("serve_wsgi.py")

_CONFIG = """\
[DEFAULT]
enabled_backends = file:file
transport_url = fake://
log_file = {here}/glance.log
worker_self_reference_url = http://127.0.0.1:{port}
[database]
connection = sqlite:///{here}/glance.sqlite?timeout=60
[glance_store]
default_backend = file
[file]
filesystem_store_datadir = {images}
filesystem_store_chunk_size = 4194304
[os_glance_staging_store]
filesystem_store_datadir = {here}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {here}/tasks
[paste_deploy]
config_file = {venv}/etc/glance/glance-api-paste.ini
{identity}"""


class Glance:
    """One image service; its state in `directory` survives a restart.

    It believes everybody unless an `identity` is set before it starts.
    """

    def __init__(self, directory: Path, venv: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.identity: Identity = NoIdentity()
        self._directory = directory
        self._venv = venv
        #: Where the file store keeps the data, a file an image id. Set it before the start.
        self.images = directory / "images"
        self.process = Process("glance", directory)
        self.port = kept_port(directory / "port", self.process)

    @property
    def endpoint(self) -> str:
        """Its URL, without a version."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, if it does not run, and wait until it listens."""
        if self.process.pid is None:
            self._configure()
            self.process.start(
                [
                    *(str(self._venv / "bin/python"), "-P", str(_SERVE)),
                    *("glance.wsgi.api", str(self.port)),
                ],
                environment={"OS_GLANCE_CONFIG_DIR": str(self._directory)},
            )
        self.process.wait_until(lambda: listens(self.port), _START_TIMEOUT_S)

    def stop(self) -> None:
        """Stop it."""
        self.process.stop()

    def _configure(self) -> None:
        for store in (self.images, self._directory / "staging", self._directory / "tasks"):
            store.mkdir(exist_ok=True)
        self._directory.joinpath("glance-api.conf").write_text(
            _CONFIG.format(
                images=self.images,
                here=self._directory,
                port=self.port,
                venv=self._venv,
                identity=self.identity.glance_options,
            )
        )
        self._directory.joinpath("policy.yaml").write_text(self.identity.glance_policy)
        self._make_schema()

    def _make_schema(self) -> None:
        """Bring the database to the release's schema; an empty one is kept beside the release.

        Glance's migrations take longer than its start.
        """
        release, database = REQUIREMENTS[0], self._directory / "glance.sqlite"
        record, empty = self._directory / "schema", self._venv / f"empty-{release}.sqlite"
        if record.exists() and record.read_text() == release:
            return
        if empty.exists() and not database.exists():
            shutil.copyfile(empty, database)
        else:
            is_new = not database.exists()
            self._migrate()
            if is_new:
                unfinished = empty.with_suffix(f".{os.getpid()}")
                shutil.copyfile(database, unfinished)
                unfinished.replace(empty)
        record.write_text(release)

    def _migrate(self) -> None:
        command = [str(self._venv / "bin/glance-manage"), "--config-dir", str(self._directory)]
        with self.process.log.open("ab") as log:
            subprocess.run([*command, "db_sync"], check=True, stdout=log, stderr=log, timeout=120)


def make_venv(venv: Path) -> None:
    """Install Glance into `venv`, unless the wanted release is there."""
    _make_venv(venv, REQUIREMENTS)
