# SPDX-License-Identifier: Apache-2.0
"""Lists of rows of which one may not be readable: the others go on.

While two releases work on one database, or after a step back, a row may hold what
this one knows nothing of: an unknown kind or state, figures of another shape.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from common.errors import MalformedMessage

LOG = logging.getLogger(__name__)

#: What making a record of a row raises where the row does not fit.
UNREADABLE = (MalformedMessage, AttributeError, KeyError, TypeError, ValueError)
_REMEMBERED = 1024

_Record = TypeVar("_Record")


def readable(what: str, rows: Iterable[Any], record_of: Callable[[Any], _Record]) -> list[_Record]:
    """Return the records of those rows that can be read; each other one is told of once.

    For what looks after all of something. Where one that is missing would have
    something removed, let it fail instead.
    """
    records = []
    for row in rows:
        try:
            records.append(record_of(row))
        except UNREADABLE as error:
            tell_once(f"{what} {row.id}", f"{type(error).__name__}: {error}")
    return records


@functools.lru_cache(maxsize=_REMEMBERED)
def tell_once(what: str, why: str) -> None:
    """Log it; the next round, seconds from now, need not do so again."""
    LOG.error("%s cannot be read and is left alone (another release wrote it?): %s", what, why)
