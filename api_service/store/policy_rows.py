# SPDX-License-Identifier: Apache-2.0
"""The tables of backup policies and their runs, and how a row becomes a record."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

from sqlalchemy import Index, Integer, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from api_service.store.models import Base, Prose, Words
from api_service.store.policy_records import Missed, Policy, Retention, Run, RunState


class PolicyRow(Base):
    """A policy (see Policy)."""

    __tablename__ = "policies"
    __table_args__ = (
        Index("ix_policies_project", "project_id", "created_at", "id"),
        Index("ix_policies_created", "created_at", "id"),
        Index("ix_policies_due", "next_due_at"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project_id: Mapped[str] = mapped_column(Words(255))
    user_id: Mapped[str | None] = mapped_column(Words(255))
    name: Mapped[str] = mapped_column(Words(255))
    cron: Mapped[str] = mapped_column(String(100))
    time_zone: Mapped[str] = mapped_column(String(64))
    instances: Mapped[dict[str, Any]]
    retention: Mapped[dict[str, Any] | None]
    incremental: Mapped[bool]
    full_every: Mapped[int | None] = mapped_column(Integer)
    freeze: Mapped[str | None] = mapped_column(String(16))
    verify: Mapped[bool]
    missed: Mapped[str] = mapped_column(String(16))
    jitter_s: Mapped[int] = mapped_column(Integer)
    enabled: Mapped[bool]
    context: Mapped[dict[str, Any]]
    next_due_at: Mapped[dt.datetime | None]
    created_at: Mapped[dt.datetime]
    updated_at: Mapped[dt.datetime]


class RunRow(Base):
    """A run (see Run); there is one of a policy for an instance and a time."""

    __tablename__ = "policy_runs"
    __table_args__ = (
        UniqueConstraint("policy_id", "instance_uuid", "due_at", name="uq_policy_runs_once"),
        Index("ix_policy_runs_list", "policy_id", "due_at", "id"),
        Index("ix_policy_runs_state", "state", "start_at"),
        Index("ix_policy_runs_job", "job_id"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    policy_id: Mapped[str] = mapped_column(String(36))
    instance_uuid: Mapped[str] = mapped_column(String(36))
    state: Mapped[str] = mapped_column(String(16))
    manual: Mapped[bool]
    due_at: Mapped[dt.datetime]
    counts_at: Mapped[dt.datetime]
    start_at: Mapped[dt.datetime]
    give_up_at: Mapped[dt.datetime]
    retry_at: Mapped[dt.datetime | None]
    attempts: Mapped[int] = mapped_column(Integer)
    job_id: Mapped[str | None] = mapped_column(String(36))
    verify_job_id: Mapped[str | None] = mapped_column(String(36))
    verify_attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    reason: Mapped[str | None] = mapped_column(Prose)
    reason_code: Mapped[str | None] = mapped_column(Words(64))
    created_at: Mapped[dt.datetime]
    finished_at: Mapped[dt.datetime | None]


def policy(row: PolicyRow) -> Policy:
    """Return the record of a row."""
    fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(Policy)}
    fields["retention"] = Retention(**row.retention) if row.retention else None
    return Policy(**{**fields, "missed": Missed(row.missed)})


def values_of(record: Policy) -> dict[str, Any]:
    """Return what stands in a policy's row."""
    kept = record.retention
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(Policy)}
    return {**values, "retention": dataclasses.asdict(kept) if kept else None}


def run(row: RunRow) -> Run:
    """Return the record of a row."""
    fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(Run)}
    return Run(**{**fields, "state": RunState(row.state)})


def run_row(record: Run) -> RunRow:
    """Return the row of a new run."""
    return RunRow(**{field.name: getattr(record, field.name) for field in dataclasses.fields(Run)})
