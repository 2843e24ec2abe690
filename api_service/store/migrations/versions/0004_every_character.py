# SPDX-License-Identifier: Apache-2.0
"""MariaDB stores every character, and tells `Web` from `web`, as the other databases do."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TABLES = ("agents", "instances", "jobs", "leases")


def upgrade() -> None:
    """Bring the schema here."""
    if op.get_bind().dialect.name not in ("mysql", "mariadb"):
        return
    for table in _TABLES:
        op.execute(f"ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
    # What may hold more bytes than before was made a larger type.
    op.alter_column("jobs", "reason", existing_type=sa.Text(), type_=sa.Text(), nullable=True)
