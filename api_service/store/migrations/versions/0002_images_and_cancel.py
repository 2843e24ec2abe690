# SPDX-License-Identifier: Apache-2.0
"""Jobs have an image for each disk, and can be cancelled."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

#: MariaDB keeps whole seconds unless told otherwise.
TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema here."""
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        # Without a default (MariaDB takes none for JSON), and processes of the release before
        # still write rows while they are upgraded one by one: no value is an empty list.
        batch_op.add_column(sa.Column("images", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("cancel_asked_at", TIME, nullable=True))
