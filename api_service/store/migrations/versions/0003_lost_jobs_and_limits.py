# SPDX-License-Identifier: Apache-2.0
"""What an agent has lost is noticed, a changed limit is told until it is heard."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

#: MariaDB keeps whole seconds unless told otherwise.
TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema here."""
    with op.batch_alter_table("agents", schema=None) as batch_op:
        batch_op.add_column(sa.Column("open_jobs", sa.JSON(), nullable=True))
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("discarded_at", TIME, nullable=True))
        # With a default: the release before does not write it.
        batch_op.add_column(
            sa.Column("limit_due", sa.Boolean(), server_default=sa.false(), nullable=False)
        )
