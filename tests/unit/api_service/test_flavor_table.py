# SPDX-License-Identifier: Apache-2.0
"""The operator's table of sizes: what it may hold, and how it says what it may not."""

from __future__ import annotations

import pytest

from api_service import flavor_table
from common.errors import ConfigurationError
from common.reports import Flavor


def test_each_line_is_a_size() -> None:
    assert flavor_table.read({"m1.tiny": "1/512/0", " big ": " 8/16384/160 "}) == {
        "m1.tiny": Flavor(name="m1.tiny", vcpus=1, memory_mib=512, disk_gib=0),
        "big": Flavor(name="big", vcpus=8, memory_mib=16384, disk_gib=160),
    }


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("a", "1/512"), ("a", "0/512/1"), ("a", "1/0/1"), ("a", "1/-5/1"), ("a", ""), ("é/", "1/1/1")],
)
def test_what_cannot_be_a_size_is_named(name: str, sizes: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        flavor_table.read({name: sizes})
