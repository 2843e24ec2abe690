# SPDX-License-Identifier: Apache-2.0
"""What createImage's body may be, and whether a refusal names the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_service import schemas
from api_service.errors import BadRequest
from api_service.schemas.create import create_server
from api_service.schemas.v1_policies import POLICY_CHANGES, POLICY_WHOLE


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


_POLICY = {
    "name": "nightly",
    "schedule": {"cron": "0 2 * * *"},
    "instances": {"all": True},
}


def _server(**changes: Any) -> dict[str, Any]:
    server = {"name": "s", "imageRef": "", "flavorRef": "1", "networks": "none", **changes}
    return {"server": server}


def _backup(rotation: object) -> dict[str, Any]:
    return {"createBackup": {"name": "s", "backup_type": "daily", "rotation": rotation}}


def _policy(**changes: object) -> dict[str, Any]:
    return {"policy": {**_POLICY, **changes}}


_IMAGE_REF = "8f2f6c1c-6f0b-4b7e-9d53-5d1a2b3c4d5e"
#: Every body that holds a number, by what is asked.
NUMBERS: dict[str, tuple[Any, Callable[[object], dict[str, Any]]]] = {
    "rotation": (schemas.CREATE_BACKUP, _backup),
    "bandwidth_limit": (schemas.ADJUST_JOB, lambda number: {"bandwidth_limit": number}),
    "retention.last": (POLICY_WHOLE, lambda number: _policy(retention={"last": number})),
    "retention.yearly": (POLICY_CHANGES, lambda number: _policy(retention={"yearly": number})),
    "full_every": (POLICY_WHOLE, lambda number: _policy(incremental=True, full_every=number)),
    "jitter_s": (POLICY_CHANGES, lambda number: _policy(jitter_s=number)),
    "min_count": (
        create_server((2, 96)),
        lambda number: _server(min_count=number, imageRef=_IMAGE_REF),
    ),
    "flavorRef": (
        create_server((2, 96)),
        lambda number: _server(flavorRef=number, imageRef=_IMAGE_REF),
    ),
}


@pytest.mark.parametrize("field", NUMBERS)
def test_a_whole_number_is_written_as_one(field: str) -> None:
    """As Nova's draft of JSON Schema has it: 3.0 is none."""
    schema, body_of = NUMBERS[field]
    schemas.validate(schema, body_of(3))
    for number in (3.0, 3.5, 1e20, True, float("inf")):
        with pytest.raises(BadRequest) as refused:
            schemas.validate(schema, body_of(number))
        assert field in refused.value.message, number
