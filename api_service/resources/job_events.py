# SPDX-License-Identifier: Apache-2.0
"""`/v1/jobs/{id}/events`: a job as it goes on, as server-sent events or one long poll.

An event shows the whole job, so none is missed by whoever was away: with
`Last-Event-ID` only a job that looks different is told again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import falcon
from oslo_db import exception as db_errors
from sqlalchemy.exc import SQLAlchemyError

from api_service import views
from api_service.quotas import Streams
from api_service.resources.operations import JobResource
from api_service.schemas import v1
from common.states import ENDED

LOG = logging.getLogger(__name__)

#: Proxies close what is silent, and a client that has gone shows when it is written to.
_HEARTBEAT_S = 10.0
_RETRY_MS = 2000

Look = Callable[[], dict[str, Any] | None]


class JobEvents(JobResource):
    """How a job goes on."""

    def on_get(self, request: falcon.Request, response: falcon.Response, job_id: str) -> None:
        """Tell each change until the job has ended; with `wait`, answer once, at the next change.

        204 tells a client that comes again that there is nothing more to come.
        """
        asked = v1.read_query(request, v1.EVENT_FILTERS)
        shown = self.show(request, self.job(request, job_id, "stillframe:jobs:show"))
        seen = request.get_header("Last-Event-ID")
        if _has_ended(shown) and views.event_id(shown) == seen:
            response.status = falcon.HTTP_204
            return
        sees_host, streams = self.sees_all(request), self.services.streams
        project_id = self.caller(request).project_id

        def look() -> dict[str, Any] | None:
            job = self.services.ledger.find(job_id)
            return views.job(job, sees_host=sees_host) if job else None

        if "wait" in asked:
            with streams.taken(project_id):
                shown = _next_change(streams, look, seen, asked["wait"]) or shown
            response.media = {"event_id": views.event_id(shown), "job": shown}
            return
        give_back = streams.take(project_id)
        response.content_type = "text/event-stream"
        response.set_header("Cache-Control", "no-cache")
        # nginx would keep events until it has a page of them.
        response.set_header("X-Accel-Buffering", "no")
        response.stream = EventStream(streams, give_back, look, seen)


class EventStream:
    """The body of a reply: events, until the job or its time has ended. The server closes it."""

    def __init__(
        self, streams: Streams, give_back: Callable[[], None], look: Look, seen: str | None
    ) -> None:
        self._streams = streams
        self._give_back = give_back
        self._look = look
        self._seen = seen

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._events()
        except (db_errors.DBError, SQLAlchemyError):
            # The client asks again, and is told of it then.
            LOG.warning("A stream of events ends: the database does not answer")
        finally:
            self.close()

    def close(self) -> None:
        """Give the place back; called by the server, also where nothing was ever sent."""
        self._give_back()

    def _events(self) -> Iterator[bytes]:
        began = told = time.monotonic()
        yield f"retry: {_RETRY_MS}\n\n".encode()
        while (shown := self._look()) is not None:
            event_id, now = views.event_id(shown), time.monotonic()
            if event_id != self._seen:
                self._seen, told = event_id, now
                yield _event(event_id, shown)
            elif now - told >= _HEARTBEAT_S:
                told = now
                yield b": the job is as it was\n\n"
            if _has_ended(shown) or now - began >= self._streams.longest_s:
                return
            if not self._streams.pause():
                return


def _next_change(
    streams: Streams, look: Look, seen: str | None, wait_s: float
) -> dict[str, Any] | None:
    """Return the job once it looks different from `seen`, or as it is when the time is over."""
    until = time.monotonic() + min(wait_s, streams.longest_s)
    while (shown := look()) is not None:
        is_new = views.event_id(shown) != seen
        if is_new or time.monotonic() >= until or not streams.pause():
            break
    return shown


def _event(event_id: str, shown: dict[str, Any]) -> bytes:
    name = "end" if _has_ended(shown) else "job"
    return f"id: {event_id}\nevent: {name}\ndata: {json.dumps({'job': shown})}\n\n".encode()


def _has_ended(shown: dict[str, Any]) -> bool:
    return shown["state"] in ENDED
