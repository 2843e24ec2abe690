# SPDX-License-Identifier: Apache-2.0
"""One of many processes at a time: a row that the holder renews and others take when it lapses.

It lapses by the database's clock: those of the API's hosts may differ by more than it lasts.
"""

from __future__ import annotations

import datetime as dt

from oslo_db import exception as db_errors
from sqlalchemy import or_, update

from api_service.store.engine import Database, retried
from api_service.store.models import LeaseRow


class Lease:
    """The lease `name`, as the process `holder` sees it."""

    def __init__(self, database: Database, name: str, holder: str, duration_s: float) -> None:
        self._database = database
        self._name = name
        self._holder = holder
        self._duration = dt.timedelta(seconds=duration_s)

    @retried
    def take(self) -> bool:
        """Take or renew the lease; False while another holds it."""
        with self._database.write() as session:
            now = self._database.now(session)
            free = or_(LeaseRow.holder == self._holder, LeaseRow.until < now)
            result = session.execute(
                update(LeaseRow)
                .where(LeaseRow.name == self._name, free)
                .values(holder=self._holder, until=now + self._duration)
            )
            if result.rowcount:  # type: ignore[attr-defined]
                return True
            known = session.get(LeaseRow, self._name) is not None
        return not known and self._create(now)

    def _create(self, now: dt.datetime) -> bool:
        try:
            with self._database.write() as session:
                row = LeaseRow(name=self._name, holder=self._holder, until=now + self._duration)
                session.add(row)
        except db_errors.DBDuplicateEntry:
            return False  # another process was quicker
        return True
