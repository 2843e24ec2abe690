# SPDX-License-Identifier: Apache-2.0
"""Instances are locked, and held to be in error."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema here."""
    with op.batch_alter_table("instances", schema=None) as batch_op:
        batch_op.add_column(sa.Column("locked_by", sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column("locked_reason", sa.String(length=255), nullable=True))
        # With a default: the release before does not write it.
        batch_op.add_column(
            sa.Column("in_error", sa.Boolean(), server_default=sa.false(), nullable=False)
        )
