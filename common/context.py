# SPDX-License-Identifier: Apache-2.0
"""Who asked, under which request id, about which instance.

A RequestContext is made by the API's middleware, travels in every RPC message
and is bound to the thread that works for it, so that oslo.log writes the same
`[req-…]` and `[instance: …]` into each line of both logs without any module
having to pass them along.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from oslo_context import context as oslo_context


class RequestContext(oslo_context.RequestContext):
    """oslo.context's RequestContext; `resource_uuid` is the instance worked on."""


def new(instance_uuid: str | None = None, **values: Any) -> RequestContext:
    """Return a fresh context, not yet bound to the thread, with a new request id."""
    return _unbound(lambda: RequestContext(resource_uuid=instance_uuid, **values))


def from_wire(wire: Mapping[str, Any] | None, instance_uuid: str | None = None) -> RequestContext:
    """Rebuild the context of an RPC message; whatever is missing is made anew."""
    values = dict(wire or {})
    # oslo.context's own name for it is `user`; other services' contexts say it so.
    values.setdefault("user", values.get("user_id"))
    context = _unbound(lambda: RequestContext.from_dict(values))
    if instance_uuid is not None:
        context.resource_uuid = instance_uuid
    return context


@contextlib.contextmanager
def bound(context: RequestContext) -> Iterator[RequestContext]:
    """Bind the context to this thread for the block, and put back what was there before."""
    before = oslo_context.get_current()
    context.update_store()
    try:
        yield context
    finally:
        _put_back(before)


def current() -> RequestContext | None:
    """Return the context bound to this thread, if any."""
    context = oslo_context.get_current()
    return context if isinstance(context, RequestContext) else None


def _unbound(make: Callable[[], RequestContext]) -> RequestContext:
    """Make a context; oslo.context would bind it to a thread that has none, for ever."""
    before = oslo_context.get_current()
    try:
        return make()
    finally:
        _put_back(before)


def _put_back(before: oslo_context.RequestContext | None) -> None:
    if before is not None:
        before.update_store()
    elif hasattr(oslo_context._request_store, "context"):
        del oslo_context._request_store.context
