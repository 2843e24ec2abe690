# SPDX-License-Identifier: Apache-2.0
"""The connection to the database, made by oslo.db from `[database]`.

`Database.read` and `Database.write` give a session in a transaction. On SQLite
a writing transaction takes the lock at its beginning: one that reads first and
is overtaken could not be finished otherwise. Elsewhere rows are locked one by
one and read as committed, and what loses to another process is `retried`.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import re2  # type: ignore[import-untyped]
import tenacity
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from oslo_db import exception as db_errors
from oslo_db.sqlalchemy import enginefacade, exc_filters
from sqlalchemy import URL, Connection, Engine, event, make_url, text
from sqlalchemy import exc as sql_errors
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import CreateEnginePlugin
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from common import clock
from common.errors import ConfigurationError

_BUSY_TIMEOUT_MS = 10_000
_WRITES = "stillframe_writes"
#: Where oslo.db notes on a SQLite connection that it has begun a transaction.
_BEGUN = "in_transaction"
_PLUGIN = "stillframe_keeps_connections"
_SQLITE_KEPT = 20
_PATTERN_MEMORY_BYTES = 1 << 20
_MYSQL = frozenset({"mysql", "mariadb"})
#: What a server says that the time is, in UTC.
_SERVER_CLOCKS = {
    "postgresql": "SELECT timezone('UTC', clock_timestamp())",
    "mysql": "SELECT UTC_TIMESTAMP(6)",
}
_ATTEMPTS = 20

#: Has a method do its transaction anew if it lost to another process: one of two that wait
#: for each other is ended by the database, and one of two may add the same row.
retried = tenacity.retry(
    retry=tenacity.retry_if_exception_type((db_errors.DBDeadlock, db_errors.DBDuplicateEntry)),
    stop=tenacity.stop_after_attempt(_ATTEMPTS),
    wait=tenacity.wait_random_exponential(multiplier=0.01, max=0.5),
    reraise=True,
)


#: What oslo.db would not know for what it is: kind of database → its words → the error.
_FAILURES: tuple[tuple[str, str, type[db_errors.DBError]], ...] = (
    # It knows an older libpq's words.
    ("postgresql", r".*connection to server ", db_errors.DBConnectionError),
    ("postgresql", r".*due to statement timeout", db_errors.DBError),
    # A bad regular expression; a query that took longer than it may.
    ("mysql", r".*\((1139|1969),", db_errors.DBError),
)


def _raises(kind: type[db_errors.DBError]) -> Callable[..., None]:
    def fail(error: Exception, *_: Any) -> None:
        raise kind(error)

    return fail


for _dialect, _words, _kind in _FAILURES:
    exc_filters.filters(_dialect, sql_errors.OperationalError, _words)(_raises(_kind))


class _KeepsConnections(CreateEnginePlugin):
    """Has SQLite's connections kept: oslo.db would open one for each transaction."""

    def __init__(self, _url: URL, options: dict[str, Any]) -> None:
        options["poolclass"] = QueuePool
        options.update(pool_size=_SQLITE_KEPT, max_overflow=-1)
        # A file does not go away as a server does; the connection used last has its pages at hand.
        options.update(pool_pre_ping=False, pool_use_lifo=True)

    def update_url(self, url: URL) -> URL:
        """Nothing of the URL is the plugin's."""
        return url


plugins.register(_PLUGIN, __name__, _KeepsConnections.__name__)


class Database:
    """One database; thread-safe."""

    def __init__(self, connection: str, **oslo_db_options: Any) -> None:
        context = enginefacade.transaction_context()
        url = _understood(make_url(connection)).render_as_string(hide_password=False)
        # For greenthreads, oslo.db would sleep after each transaction; these are real threads.
        context.configure(connection=url, thread_checkin=False, **oslo_db_options)
        try:
            self.engine: Engine = context.writer.get_engine()
        except sql_errors.OperationalError as error:
            # What oslo.db takes for no lack of a connection: a wrong password, say.
            raise db_errors.DBError(error) from error
        self._is_sqlite = self.engine.dialect.name == "sqlite"
        self._is_mariadb = bool(getattr(self.engine.dialect, "is_mariadb", False))
        if self._is_sqlite:
            _prepare_sqlite(self.engine)
        elif self.engine.dialect.name == "mysql":
            _prepare_mysql(self.engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session to read with."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def read_for(self, seconds: int) -> Iterator[Session]:
        """Give a session to read with; a server ends a query that takes it longer."""
        with self.read() as session:
            if self.engine.dialect.name == "postgresql":
                session.execute(text(f"SET LOCAL statement_timeout = '{seconds}s'"))
            elif self._is_mariadb:
                session.execute(text(f"SET SESSION max_statement_time = {seconds}"))
            try:
                yield session
            finally:
                if self._is_mariadb:
                    session.rollback()
                    session.execute(text("SET SESSION max_statement_time = DEFAULT"))

    def now(self, session: Session) -> dt.datetime:
        """Return the time by the one clock that all processes on this database have."""
        statement = _SERVER_CLOCKS.get(self.engine.dialect.name)
        if statement is None:
            return clock.now()
        told: dt.datetime = session.execute(text(statement)).scalar_one()
        return told.replace(tzinfo=dt.UTC)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session whose changes are committed together, or not at all."""
        with self.engine.connect() as connection:
            if self._is_sqlite:
                connection = connection.execution_options(**{_WRITES: True})
            with Session(connection) as session, session.begin():
                yield session

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


def _understood(url: URL) -> URL:
    """Return the URL so that oslo.db knows the kind, and MySQL's drivers send every character.

    SQLite's gets our plugin, the documented way past oslo.db's choice of a pool.
    """
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        return url.update_query_dict({"plugin": _PLUGIN}, append=True)
    if url.get_backend_name() not in _MYSQL:
        return url
    url = url.set(drivername=url.drivername.replace("mariadb", "mysql", 1))
    return url if "charset" in url.query else url.update_query_dict({"charset": "utf8mb4"})


def _prepare_mysql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(dbapi_connection: Any, _record: Any) -> None:
        # As PostgreSQL's default. Its own locks the gaps between rows, too: heartbeats of
        # different hosts, which add different instances, would wait for each other.
        with dbapi_connection.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    engine.dispose()  # oslo.db has tried a connection, which is not so


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(dbapi_connection: Any, record: Any) -> None:
        record.info[_BEGUN] = True
        for pragma in ("journal_mode=WAL", f"busy_timeout={_BUSY_TIMEOUT_MS}", "synchronous=FULL"):
            dbapi_connection.execute(f"PRAGMA {pragma}")
        # In place of SQLAlchemy's, which is Python's `re`.
        dbapi_connection.create_function("regexp", 2, _is_match, deterministic=True)

    engine.dispose()  # oslo.db has tried a connection, which is not so

    # In place of oslo.db's, which sends every BEGIN through SQLAlchemy's compiler.
    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        if _WRITES in connection.get_execution_options():
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            # It takes no lock, so that no failure of it must be told as oslo.db's.
            connection.connection.cursor().execute("BEGIN")

    @event.listens_for(engine, "rollback")
    @event.listens_for(engine, "commit")
    def _on_end(connection: Connection) -> None:
        connection.info[_BEGUN] = True


def _is_match(pattern: str, value: str | None) -> bool:
    return value is not None and compiled(pattern).search(value) is not None
