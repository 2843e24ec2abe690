# SPDX-License-Identifier: Apache-2.0
"""Alembic's environment; `store.schema` runs it. New ones: see CONTRIBUTING.md."""
