# SPDX-License-Identifier: Apache-2.0
"""A policy's backup is tried again if it was not its own fault: how often it was."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema here."""
    with op.batch_alter_table("policy_runs", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("verify_attempts", sa.Integer(), server_default="0", nullable=False)
        )
