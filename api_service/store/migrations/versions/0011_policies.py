# SPDX-License-Identifier: Apache-2.0
"""Backup policies and their runs; the jobs of one are found."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

#: MariaDB keeps whole seconds unless told otherwise.
TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
#: Whatever the database's own: what differs in a letter's case alone is not the same (0004).
TABLE: dict[str, Any] = {
    f"{kind}_{name}": value
    for kind in ("mysql", "mariadb")
    for name, value in (("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema here."""
    _create_policies()
    _create_runs()
    op.create_index("ix_jobs_policy", "jobs", ["policy_id", "created_at", "id"])


def _create_policies() -> None:
    op.create_table(
        "policies",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("user_id", sa.String(length=255), nullable=True),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("cron", sa.String(length=100), nullable=False),
        sa.Column("time_zone", sa.String(length=64), nullable=False),
        sa.Column("instances", sa.JSON(), nullable=False),
        sa.Column("retention", sa.JSON(), nullable=True),
        sa.Column("incremental", sa.Boolean(), nullable=False),
        sa.Column("full_every", sa.Integer(), nullable=True),
        sa.Column("freeze", sa.String(length=16), nullable=True),
        sa.Column("verify", sa.Boolean(), nullable=False),
        sa.Column("missed", sa.String(length=16), nullable=False),
        sa.Column("jitter_s", sa.Integer(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("next_due_at", TIME, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        **TABLE,
    )
    op.create_index("ix_policies_project", "policies", ["project_id", "created_at", "id"])
    op.create_index("ix_policies_created", "policies", ["created_at", "id"])
    op.create_index("ix_policies_due", "policies", ["next_due_at"])


def _create_runs() -> None:
    op.create_table(
        "policy_runs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("policy_id", sa.String(length=36), nullable=False),
        sa.Column("instance_uuid", sa.String(length=36), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("manual", sa.Boolean(), nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("counts_at", TIME, nullable=False),
        sa.Column("start_at", TIME, nullable=False),
        sa.Column("give_up_at", TIME, nullable=False),
        sa.Column("retry_at", TIME, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=True),
        sa.Column("verify_job_id", sa.String(length=36), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("reason_code", sa.String(length=64), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("policy_id", "instance_uuid", "due_at", name="uq_policy_runs_once"),
        **TABLE,
    )
    op.create_index("ix_policy_runs_list", "policy_runs", ["policy_id", "due_at", "id"])
    op.create_index("ix_policy_runs_state", "policy_runs", ["state", "start_at"])
    op.create_index("ix_policy_runs_job", "policy_runs", ["job_id"])
