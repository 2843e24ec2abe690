# SPDX-License-Identifier: Apache-2.0
"""Backups have a type, and take the place of older ones of theirs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    """Bring the schema here."""
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("backup_type", sa.String(length=255), nullable=True))
        batch_op.add_column(sa.Column("rotation", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("policy_id", sa.String(length=36), nullable=True))
        batch_op.add_column(
            sa.Column("rotation_due", sa.Boolean(), server_default=sa.false(), nullable=False)
        )
        batch_op.add_column(sa.Column("removed_at", _TIME, nullable=True))
        batch_op.create_index(
            "ix_jobs_backups", ["instance_uuid", "backup_type", "created_at", "id"]
        )
        batch_op.create_index("ix_jobs_rotation", ["rotation_due"])
