# SPDX-License-Identifier: Apache-2.0
"""Of the instances that are asked for here: which request it was, and which of its instances."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema here."""
    with op.batch_alter_table("instances", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("reservation_id", sa.String(length=64), server_default="", nullable=False)
        )
        batch_op.add_column(
            sa.Column("launch_index", sa.Integer(), server_default="0", nullable=False)
        )
