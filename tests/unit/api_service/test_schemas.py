# SPDX-License-Identifier: Apache-2.0
"""What createImage's body may be, and whether a refusal names the field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_service import schemas
from api_service.errors import BadRequest


def check(action: Any) -> None:
    """Validate `{"createImage": action}`."""
    schemas.validate(schemas.CREATE_IMAGE, {"createImage": action})


@pytest.mark.parametrize(
    "action",
    [
        {"name": "s"},
        {"name": "x" * 255},
        {"name": "Schnappschuß 1 ✓"},
        {"name": "two words", "metadata": {}},
        {"name": "s", "metadata": {"image_type": "test", "a-b_c:d. e": "v" * 255}},
    ],
)
def test_what_nova_takes_is_taken(action: dict[str, Any]) -> None:
    check(action)


@pytest.mark.parametrize(
    ("action", "named"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": " lead"}, "name"),
        ({"name": "trail "}, "name"),
        ({"name": "line\nbreak"}, "name"),
        ({"name": "break at the end\n"}, "name"),
        ({"name": 7}, "name"),
        ({"name": None}, "name"),
        ({"name": "s", "colour": "red"}, "colour"),
        ({"name": "s", "metadata": []}, "metadata"),
        ({"name": "s", "metadata": {"k": 1}}, "k"),
        ({"name": "s", "metadata": {"k": "v" * 256}}, "k"),
        ({"name": "s", "metadata": {"": "v"}}, "metadata"),
        ({"name": "s", "metadata": {"slash/ed": "v"}}, "slash/ed"),
        ("name", "createImage"),
        (None, "createImage"),
    ],
)
def test_a_refusal_names_the_field(action: Any, named: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check(action)
    assert named in refused.value.message


def test_a_refusal_does_not_echo_a_book() -> None:
    with pytest.raises(BadRequest) as refused:
        check({"name": "x" * 100_000})
    assert len(refused.value.message) < 2000


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner)))
def test_nothing_but_an_object_passes(action: Any) -> None:
    with pytest.raises(BadRequest):
        check(action)
