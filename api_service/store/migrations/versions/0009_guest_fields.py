# SPDX-License-Identifier: Apache-2.0
"""Users tell what their guests are called and reached by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema here."""
    with op.batch_alter_table("instances", schema=None) as batch_op:
        batch_op.add_column(sa.Column("hostname", sa.String(length=255), nullable=True))
        batch_op.add_column(sa.Column("access_ip_v4", sa.String(length=15), nullable=True))
        batch_op.add_column(sa.Column("access_ip_v6", sa.String(length=45), nullable=True))
        batch_op.add_column(sa.Column("disk_config", sa.String(length=16), nullable=True))
