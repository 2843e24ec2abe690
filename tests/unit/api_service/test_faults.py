# SPDX-License-Identifier: Apache-2.0
"""Every exception that can reach a client has a fault of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api_service import faults
from common.errors import StillframeError
from common.glance import ImageRefused


def leaves(kind: type[StillframeError]) -> Iterator[type[StillframeError]]:
    """Yield the leaves of the tree that the API itself can import."""
    below = [one for one in kind.__subclasses__() if one.__module__.split(".")[0] in OURS]
    if not below:
        yield kind
    for one in below:
        yield from leaves(one)


OURS = ("common", "api_service")
LEAVES = sorted(set(leaves(StillframeError)), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_each_leaf_of_the_error_tree_has_a_fault(kind: type[StillframeError]) -> None:
    """A leaf that falls through would be told as an unexpected 500."""
    error = kind("some words")
    assert faults.fault_of(error) is not faults.INTERNAL


def test_the_tree_was_found() -> None:
    names = {kind.__name__ for kind in LEAVES}
    assert {"InstanceBusy", "ImageRefused", "BadRequest", "NoUsableDisk"} <= names


def test_what_nobody_foresaw_is_an_internal_fault() -> None:
    assert faults.fault_of(RuntimeError("boom")) is faults.INTERNAL


@pytest.mark.parametrize(
    ("status", "told"), [(400, 400), (403, 403), (413, 403), (409, 409), (401, 503)]
)
def test_what_glance_refuses_is_told_as_nova_tells_it(status: int, told: int) -> None:
    """403 and 413 are quotas; a 401 is our own credentials' fault, not the caller's."""
    assert faults.fault_of(ImageRefused("no", status)).status == told


def test_only_what_may_help_to_repeat_says_when() -> None:
    told = {fault.status for fault in faults.FAULTS.values() if fault.retry_after_s is not None}
    # And 413, where it is Nova's `overLimit`, which has such a field.
    assert told == {413, 429, 503}
