# SPDX-License-Identifier: Apache-2.0
"""The documents that name places in the code name places that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.messages import HISTORY, RPC_VERSION

ROOT = Path(__file__).parents[2]
STEPS = re.findall(
    r"^\| \d+ \| `(?P<path>[^`]+)` `(?P<name>[^`]+)`",
    (ROOT / "docs" / "flow.md").read_text(),
    flags=re.MULTILINE,
)


@pytest.mark.parametrize(("path", "name"), STEPS, ids=lambda value: str(value))
def test_each_place_of_a_requests_way_exists(path: str, name: str) -> None:
    text = (ROOT / path).read_text()
    assert re.search(rf"^(class |def )?{name}\b", text, flags=re.MULTILINE)


def test_the_way_is_told_from_the_route_to_the_view() -> None:
    assert (STEPS[0][0], STEPS[-1][0]) == ("api_service/app.py", "api_service/views.py")


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_every_rpc_method_of_the_newest_version_is_documented() -> None:
    text = (ROOT / "docs" / "rpc.md").read_text()
    for method in re.findall(r"\w+_\w+", HISTORY[RPC_VERSION]):
        assert f"`{method}`" in text
