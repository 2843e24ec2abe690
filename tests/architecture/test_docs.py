# SPDX-License-Identifier: Apache-2.0
"""The documents that name places in the code name places that exist."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import calls, messages, reports
from common.messages import HISTORY, RPC_VERSION

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "api_service", "compute_agent")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
#: Described as a method's arguments, not as a message.
ARGUMENTS = {
    messages.BackupRequest,
    messages.InstanceRef,
    messages.JobAdjust,
    messages.JobCancel,
    messages.PowerRequest,
    messages.CreateRequest,
    messages.DeleteRequest,
    messages.RebuildRequest,
    messages.VerifyRequest,
    messages.SnapshotOptions,
    messages.SnapshotRequest,
    calls.BackupCall,
    calls.CreateCall,
    calls.DeleteCall,
    calls.JobCall,
    calls.PowerCall,
    calls.RebuildCall,
    calls.SnapshotCall,
}
MESSAGES = [
    kind
    for kind in {**vars(messages), **vars(reports), **vars(calls)}.values()
    if dataclasses.is_dataclass(kind) and kind is not messages.Message
]
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
    assert (STEPS[0][0], STEPS[-1][0]) == ("api_service/app.py", "api_service/views/servers.py")


@pytest.mark.parametrize(
    "document", sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]), ids=lambda p: p.name
)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_every_rpc_method_of_the_newest_version_is_documented() -> None:
    text = (ROOT / "docs" / "rpc.md").read_text()
    for method in re.findall(r"\w+_\w+", HISTORY[RPC_VERSION]):
        assert f"`{method}`" in text


@pytest.mark.parametrize("message", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_field_of_every_message_is_documented(message: type[messages.Message]) -> None:
    text = (ROOT / "docs" / "rpc.md").read_text()
    words = {word for found in re.findall(r"`([\w.]+)`", text) for word in found.split(".")}
    assert {field.name for field in dataclasses.fields(message)} <= words


@pytest.mark.parametrize(
    "message", [m for m in MESSAGES if m not in ARGUMENTS], ids=lambda kind: kind.__name__
)
def test_the_fields_stand_where_their_message_does(message: type[messages.Message]) -> None:
    """A name may be a field of several messages; each has its own place."""
    text = (ROOT / "docs" / "rpc.md").read_text()
    _, _, after = text.partition(f"**`{message.__name__}`**")
    place = re.split(r"^(?:\*\*`|#|Reports)", after, maxsplit=1, flags=re.MULTILINE)[0]
    missing = {f.name for f in dataclasses.fields(message)} - set(re.findall(r"`(\w+)`", place))
    assert not missing


def codes() -> Iterator[str]:
    for path in SOURCES:
        yield from re.findall(r"^    code(?:: str)? = \"(\w+)\"", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("code", sorted(set(codes())))
def test_every_error_code_says_what_to_do(code: str) -> None:
    rows = (ROOT / "docs" / "operations.md").read_text().splitlines()
    assert any(line.startswith("| `") and f"`{code}`" in line.split("|")[1] for line in rows)


def test_no_two_errors_share_a_code() -> None:
    assert len(list(codes())) == len(set(codes()))


def test_the_map_names_every_module() -> None:
    """Each in its package's part; migrations are one thing."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tree = text[text.index("common/  ") : text.index("\netc/  ")]
    parts = re.split(r"^(?:api_service|compute_agent)/", tree, flags=re.MULTILINE)
    places = dict(zip(PACKAGES, parts, strict=True))
    missing = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.stem != "__init__" and "migrations" not in path.parts
        if not re.search(rf"\b{path.stem}\b", places[path.relative_to(ROOT).parts[0]])
    ]
    assert not missing
