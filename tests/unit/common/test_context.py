# SPDX-License-Identifier: Apache-2.0
"""A thread's log lines carry a request's ids while it works for it, and not a moment longer."""

from __future__ import annotations

import pytest
from oslo_context import context as oslo_context

from common import context


@pytest.mark.parametrize("make", [context.new, lambda: context.from_wire({"user_id": "u"})])
def test_a_context_that_is_made_is_not_bound(make: object) -> None:
    assert callable(make)
    made = make()
    assert made.request_id.startswith("req-")
    assert oslo_context.get_current() is None


def test_what_was_bound_before_is_put_back() -> None:
    outer, inner = context.new(), context.new()
    with context.bound(outer):
        with context.bound(inner):
            context.from_wire(None)
            assert context.current() is inner
        assert context.current() is outer
    assert context.current() is None
