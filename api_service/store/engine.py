# SPDX-License-Identifier: Apache-2.0
"""The connection to the database, made by oslo.db from `[database]`.

`Database.read` and `Database.write` give a session in a transaction. On SQLite
a writing transaction takes the lock at its beginning: one that reads first and
is overtaken could not be finished otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import re2  # type: ignore[import-untyped]
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from oslo_db.sqlalchemy import enginefacade
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

from common.errors import ConfigurationError

_BUSY_TIMEOUT_MS = 10_000
_WRITES = "stillframe_writes"
_PATTERN_MEMORY_BYTES = 1 << 20


class Database:
    """One database; thread-safe."""

    def __init__(self, connection: str, **oslo_db_options: Any) -> None:
        context = enginefacade.transaction_context()
        context.configure(connection=connection, **oslo_db_options)
        self.engine: Engine = context.writer.get_engine()
        if self.engine.dialect.name == "sqlite":
            _prepare_sqlite(self.engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session to read with."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session whose changes are committed together, or not at all."""
        with self.engine.connect() as connection:
            connection.info[_WRITES] = True
            try:
                with Session(connection) as session, session.begin():
                    yield session
            finally:
                del connection.info[_WRITES]

    def sync(self) -> None:
        """Bring the schema to the newest version."""
        with self.engine.begin() as connection:
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def version(self) -> str | None:
        """Return the schema's version, None for an empty database."""
        with self.engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def require_current(self) -> None:
        """Raise ConfigurationError unless the schema is the one this release knows."""
        found, scripts = self.version(), ScriptDirectory.from_config(_alembic_config())
        known = [script.revision for script in scripts.walk_revisions()]
        if found is not None and found not in known:
            raise ConfigurationError(
                f"the database's schema {found} is newer than this release, which needs "
                f"{known[0]}: upgrade this API; the schema cannot go back"
            )
        if found != known[0]:
            raise ConfigurationError(
                f"the database's schema is {found or 'empty'}, this release needs {known[0]}: "
                "run 'stillframe-manage db sync'"
            )


@functools.lru_cache(maxsize=128)
def compiled(pattern: str) -> Any:
    """Return a regular expression that is matched in linear time; raise ValueError for a bad one.

    Python's own `re` goes back and tries again: `(a+)+b` on a name of forty
    letters holds the interpreter, and so the whole process, for hours.
    """
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _PATTERN_MEMORY_BYTES
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        raise ValueError("no regular expression, or one that needs too much") from error


def newest_version() -> str | None:
    """Return the version that `sync` leads to."""
    return ScriptDirectory.from_config(_alembic_config()).get_current_head()


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(dbapi_connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", f"busy_timeout={_BUSY_TIMEOUT_MS}", "synchronous=FULL"):
            dbapi_connection.execute(f"PRAGMA {pragma}")
        # In place of SQLAlchemy's, which is Python's `re`.
        dbapi_connection.create_function("regexp", 2, _is_match, deterministic=True)

    # oslo.db begins every transaction with a plain BEGIN.
    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def _on_begin(
        connection: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> tuple[str, Any]:
        if statement == "BEGIN" and _WRITES in connection.info:
            statement = "BEGIN IMMEDIATE"
        return statement, parameters


def _is_match(pattern: str, value: str | None) -> bool:
    return value is not None and compiled(pattern).search(value) is not None
