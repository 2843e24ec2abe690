# SPDX-License-Identifier: Apache-2.0
"""The health page looks at the broker now and then, however often it is asked."""

from __future__ import annotations

import pytest

from api_service.health import _at_most_every
from common.errors import BrokerUnavailable


def test_a_check_is_made_once_in_its_time_and_its_failure_told_each_time() -> None:
    made: list[int] = []

    def check() -> None:
        made.append(1)
        raise BrokerUnavailable("away")

    seldom = _at_most_every(3600, check)
    for _ in range(5):
        with pytest.raises(BrokerUnavailable):
            seldom()
    assert len(made) == 1


def test_a_check_is_made_again_when_its_time_is_over() -> None:
    made: list[int] = []
    always = _at_most_every(0, lambda: made.append(1))
    always()
    always()
    assert len(made) == 2
