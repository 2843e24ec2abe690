# SPDX-License-Identifier: Apache-2.0
"""Users name and describe their instances, and write metadata on them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema here."""
    with op.batch_alter_table("instances", schema=None) as batch_op:
        # With a default: the release before does not write it.
        batch_op.add_column(
            sa.Column("renamed", sa.Boolean(), server_default=sa.false(), nullable=False)
        )
        batch_op.add_column(sa.Column("description", sa.String(length=255), nullable=True))
        batch_op.add_column(sa.Column("user_metadata", sa.JSON(), nullable=True))
