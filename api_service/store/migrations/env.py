# SPDX-License-Identifier: Apache-2.0
"""Alembic runs this file: it migrates the connection that `store.schema` hands over."""

from alembic import context

from api_service.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite cannot alter columns: tables are rebuilt instead.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
