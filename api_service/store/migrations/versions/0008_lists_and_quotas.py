# SPDX-License-Identifier: Apache-2.0
"""Pages of jobs and instances are read along an index; a project's jobs are counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_WIDER = {
    "ix_jobs_state": ["state", "created_at", "id"],
    "ix_jobs_instance": ["instance_uuid", "created_at", "id"],
    "ix_jobs_project": ["project_id", "created_at", "id"],
}
_NEW = {
    "ix_jobs_created": ["created_at", "id"],
    "ix_jobs_host": ["host", "created_at", "id"],
    "ix_jobs_quota": ["project_id", "state", "kind"],
}


def upgrade() -> None:
    """Bring the schema here."""
    op.create_table(
        "projects",
        sa.Column("id", sa.String(length=255), primary_key=True),
        # Whatever the database's own: two projects may differ in a letter's case alone (0004).
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
    )
    for name in _WIDER:
        op.drop_index(name, table_name="jobs")
    for name, columns in {**_WIDER, **_NEW}.items():
        op.create_index(name, "jobs", columns)
    op.create_index("ix_instances_created", "instances", ["deleted_at", "created_at", "uuid"])
