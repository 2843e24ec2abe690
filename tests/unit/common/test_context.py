# SPDX-License-Identifier: Apache-2.0
"""A thread's log lines carry a request's ids while it works for it, and not a moment longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from oslo_context import context as oslo_context

from common import context


@pytest.fixture(autouse=True)
def _thread_without_a_context() -> Iterator[None]:
    """Other tests' requests are bound to this thread as they are to a server's."""
    before = oslo_context.get_current()
    if before is not None:
        del oslo_context._request_store.context
    yield
    if before is not None:
        before.update_store()


@pytest.mark.parametrize("make", [context.new, lambda: context.from_wire({"user_id": "u"})])
def test_a_context_that_is_made_is_not_bound(make: object) -> None:
    assert callable(make)
    made = make()
    assert made.request_id.startswith("req-")
    assert oslo_context.get_current() is None


@pytest.mark.parametrize("name", ["user", "user_id"])
def test_a_services_context_may_name_the_user_either_way(name: str) -> None:
    assert context.from_wire({name: "u"}).user_id == "u"


def test_what_was_bound_before_is_put_back() -> None:
    outer, inner = context.new(), context.new()
    with context.bound(outer):
        with context.bound(inner):
            context.from_wire(None)
            assert context.current() is inner
        assert context.current() is outer
    assert context.current() is None
