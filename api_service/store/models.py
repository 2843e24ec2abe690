# SPDX-License-Identifier: Apache-2.0
"""The tables. Alembic's migrations make them; a test holds the two together."""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Float, Index, Integer, String, Text, false
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

_PROSE_MAX = 16_000


class UtcDateTime(TypeDecorator[dt.datetime]):
    """An aware UTC time, stored without its zone: not every database keeps one."""

    # MariaDB keeps whole seconds unless told otherwise.
    impl = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> Any:
        """Store UTC; a naive time is a bug of ours."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("only aware times are stored")
        return value.astimezone(dt.UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> dt.datetime | None:
        """Give the zone back."""
        return value.replace(tzinfo=dt.UTC) if value is not None else None


class Words(TypeDecorator[str]):
    """Text that somebody else wrote, cut to what its column holds, and without NUL.

    SQLite would take all of it. Another database refuses it, and with it the
    whole report that it came in.
    """

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self._length = length

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Cut it; what it is compared with, too."""
        return _clean(value, self._length)


class Prose(TypeDecorator[str]):
    """The same of some length: MariaDB's TEXT holds 64 KiB, and a letter is four bytes at most."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Cut it."""
        return _clean(value, _PROSE_MAX)


def _clean(value: str | None, length: int) -> str | None:
    return None if value is None else value.replace("\0", "\ufffd")[:length]


class Base(DeclarativeBase):
    """Base of the tables."""

    type_annotation_map = {dt.datetime: UtcDateTime, dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012


class AgentRow(Base):
    """A compute agent, as its heartbeats tell."""

    __tablename__ = "agents"

    host: Mapped[str] = mapped_column(Words(255), primary_key=True)
    #: Which of those that were given this host name reports; None: of an older release.
    agent_id: Mapped[str | None] = mapped_column(Words(36))
    release: Mapped[str] = mapped_column(Words(64))
    rpc_version: Mapped[str] = mapped_column(Words(16))
    started_at: Mapped[dt.datetime]
    first_seen_at: Mapped[dt.datetime]
    last_seen_at: Mapped[dt.datetime]
    #: Seconds that its host's clock is ahead of ours; None: it does not tell.
    clock_offset_s: Mapped[float | None] = mapped_column(Float)
    hypervisor: Mapped[dict[str, Any] | None]
    #: The two newest complete lists of its open jobs, the older one first: `jobs`, `at` (its own
    #: time) and `taken_at` (ours). None: this agent sends none.
    open_jobs: Mapped[list[Any] | None]


class InstanceRow(Base):
    """An instance, as its host's agent announced it; `job_id` is the job that holds it."""

    __tablename__ = "instances"
    __table_args__ = (
        Index("ix_instances_project", "project_id", "deleted_at", "created_at", "uuid"),
        Index("ix_instances_created", "deleted_at", "created_at", "uuid"),
        Index("ix_instances_host", "host", "deleted_at"),
    )

    uuid: Mapped[str] = mapped_column(String(36), primary_key=True)
    host: Mapped[str] = mapped_column(Words(255))
    name: Mapped[str] = mapped_column(Words(255))
    domain_name: Mapped[str] = mapped_column(Words(255))
    project_id: Mapped[str] = mapped_column(Words(255))
    user_id: Mapped[str] = mapped_column(Words(255))
    flavor: Mapped[dict[str, Any]]
    image_ref: Mapped[str | None] = mapped_column(Words(255))
    image_properties: Mapped[dict[str, Any]]
    root_device_name: Mapped[str | None] = mapped_column(Words(64))
    power_state: Mapped[int] = mapped_column(Integer)
    vm_state: Mapped[str] = mapped_column(String(32))
    task_state: Mapped[str | None] = mapped_column(Words(64))
    #: Its user named it: what its host says of the name does not count any more.
    renamed: Mapped[bool] = mapped_column(server_default=false())
    description: Mapped[str | None] = mapped_column(Words(255))
    #: What its user says of the guest, and we only repeat; None: nothing.
    hostname: Mapped[str | None] = mapped_column(Words(255))
    access_ip_v4: Mapped[str | None] = mapped_column(Words(15))
    access_ip_v6: Mapped[str | None] = mapped_column(Words(45))
    disk_config: Mapped[str | None] = mapped_column(String(16))
    #: What its user wrote on it; None: nothing yet.
    user_metadata: Mapped[dict[str, Any] | None]
    #: A LockedBy: who locked it, and so who may unlock it; None: it is not locked.
    locked_by: Mapped[str | None] = mapped_column(String(16))
    locked_reason: Mapped[str | None] = mapped_column(Words(255))
    #: An administrator holds it to be broken: its vm state is error until that is taken back.
    in_error: Mapped[bool] = mapped_column(server_default=false())
    #: Why, in a tenant's words, where it is not an administrator's doing.
    fault: Mapped[str | None] = mapped_column(Prose)
    #: It was asked for here: it exists from then on, whatever hosts report, and may be deleted.
    made_here: Mapped[bool] = mapped_column(server_default=false())
    #: When it first ran; None: it never did, or its host announced it.
    launched_at: Mapped[dt.datetime | None]
    #: Of the request that asked for it and maybe for others; empty: its host announced it.
    reservation_id: Mapped[str] = mapped_column(Words(64), server_default="")
    #: Which of those it is, from 0 on.
    launch_index: Mapped[int] = mapped_column(Integer, server_default="0")
    job_id: Mapped[str | None] = mapped_column(String(36))
    progress: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[dt.datetime]
    updated_at: Mapped[dt.datetime]
    deleted_at: Mapped[dt.datetime | None]
    #: The agent's own time of the report that this row comes from.
    reported_at: Mapped[dt.datetime]


class JobRow(Base):
    """A job: the promise that a 202 made, and what became of it."""

    __tablename__ = "jobs"
    __table_args__ = (
        # Each filter of the list ends in its order.
        Index("ix_jobs_created", "created_at", "id"),
        Index("ix_jobs_state", "state", "created_at", "id"),
        Index("ix_jobs_instance", "instance_uuid", "created_at", "id"),
        Index("ix_jobs_project", "project_id", "created_at", "id"),
        Index("ix_jobs_host", "host", "created_at", "id"),
        Index("ix_jobs_quota", "project_id", "state", "kind"),
        Index("ix_jobs_discard", "discard_image"),
        Index("ix_jobs_backups", "instance_uuid", "backup_type", "created_at", "id"),
        Index("ix_jobs_rotation", "rotation_due"),
        Index("ix_jobs_policy", "policy_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(32))
    instance_uuid: Mapped[str] = mapped_column(String(36))
    project_id: Mapped[str | None] = mapped_column(Words(255))
    user_id: Mapped[str | None] = mapped_column(Words(255))
    host: Mapped[str] = mapped_column(Words(255))
    #: Empty where the kind makes none.
    image_id: Mapped[str] = mapped_column(String(36))
    options: Mapped[dict[str, Any]]
    #: The request's context as RPC carries it (without its token).
    context: Mapped[dict[str, Any]]
    #: The image's record exists: the dispatcher may cast the job.
    castable: Mapped[bool]
    step: Mapped[str | None] = mapped_column(Words(32))
    bytes_done: Mapped[int] = mapped_column(BigInteger)
    bytes_total: Mapped[int] = mapped_column(BigInteger)
    rate_bytes_s: Mapped[float] = mapped_column(Float)
    eta_s: Mapped[float | None] = mapped_column(Float)
    reason: Mapped[str | None] = mapped_column(Prose)
    reason_code: Mapped[str | None] = mapped_column(Words(64))
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha512: Mapped[str | None] = mapped_column(Words(128))
    capture: Mapped[dict[str, Any] | None]
    steps: Mapped[list[Any]]
    #: One for each disk, the root disk's first (DiskImage as it stands on the wire).
    images: Mapped[list[Any] | None]
    created_at: Mapped[dt.datetime]
    deadline_at: Mapped[dt.datetime]
    cast_at: Mapped[dt.datetime | None]
    accepted_at: Mapped[dt.datetime | None]
    reported_at: Mapped[dt.datetime | None]
    #: The agent's own time of the newest progress.
    progress_at: Mapped[dt.datetime | None]
    #: The job has ended without its image, which may still exist.
    discard_image: Mapped[bool]
    #: Nothing was left of its image then.
    discarded_at: Mapped[dt.datetime | None]
    #: Its limit was changed, and its agent has not been told.
    limit_due: Mapped[bool] = mapped_column(server_default=false())
    #: Somebody asked for the job's end; its agent has not ended it yet.
    cancel_asked_at: Mapped[dt.datetime | None]
    finished_at: Mapped[dt.datetime | None]
    #: Of a backup: as its user calls it, and how many of them are kept (None: as a policy says).
    backup_type: Mapped[str | None] = mapped_column(Words(255))
    rotation: Mapped[int | None] = mapped_column(Integer)
    policy_id: Mapped[str | None] = mapped_column(String(36))
    #: The backup is done, and those whose place it takes have not been removed.
    rotation_due: Mapped[bool] = mapped_column(server_default=false())
    #: When a rotation removed its images, or found that its user had.
    removed_at: Mapped[dt.datetime | None]


class ProjectRow(Base):
    """A project that asked for jobs: what its requests wait for while one counts its jobs."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(Words(255), primary_key=True)


class LeaseRow(Base):
    """Who may do what only one process may do at a time."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(Words(64), primary_key=True)
    holder: Mapped[str] = mapped_column(Words(255))
    until: Mapped[dt.datetime]
