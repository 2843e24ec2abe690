# SPDX-License-Identifier: Apache-2.0
"""Tempest's own compute tests, unmodified, in the default microversion and in a high one.

All of them but those that tempest_left_out.yaml names, each with its reason.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from api_service.microversions import MAXIMUM
from tests.functional import tempest_tool
from tests.functional.tempest_tool import OUT_OF_RANGE, Outcome, Run
from tools.stack.cloud import Cloud

_TIMEOUT_S = 270.0
#: Processes of tempest for each setting: it waits much more than it works.
_PROCESSES = 4
#: Tempest takes a token for dead a minute before it is.
_TOKEN_LIFE_S = 3600


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What tempest is told of microversions; without a least one each test asks for its own."""

    name: str
    min_microversion: str | None


DEFAULT = Setting(name="default", min_microversion=None)
HIGH = Setting(name="high", min_microversion=str(MAXIMUM))
SETTINGS = (DEFAULT, HIGH)


@pytest.fixture(scope="module")
def all_tests(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of all of tempest's compute tests."""
    return tempest_tool.all_tests(tmp_path_factory.mktemp("tempest-list"))


@pytest.fixture(scope="module")
def cloud(keystone_cloud: Callable[[int], Cloud]) -> Cloud:
    """The cloud with a Keystone stands in for the one that believes everybody."""
    return keystone_cloud(_TOKEN_LIFE_S)


@pytest.fixture(scope="module")
def runs(
    cloud: Cloud, all_tests: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, list[Run]]]:
    """Tempest in each setting, all side by side, each process with projects of its own."""
    target = tempest_tool.make_target(cloud, tmp_path_factory.mktemp("tempest"))
    runs: dict[str, list[Run]] = collections.defaultdict(list)
    try:
        for setting in SETTINGS:
            wanted = tempest_tool.chosen(all_tests, setting.min_microversion)
            for number, tests in enumerate(_shares(wanted)):
                name = f"{setting.name}-{number}"
                run = Run(
                    tmp_path_factory.mktemp(f"tempest-{name}"),
                    target,
                    tempest_tool.make_accounts(cloud, name),
                    tests,
                    min_microversion=setting.min_microversion,
                    max_microversion=str(MAXIMUM),
                )
                runs[setting.name].append(run)
        yield runs
    finally:
        for run in itertools.chain.from_iterable(runs.values()):
            run.stop()


def test_what_is_left_out_exists_and_has_a_reason(all_tests: list[str]) -> None:
    out = tempest_tool.left_out()
    assert [one.name for one in out if not any(map(one.covers, all_tests))] == []
    assert [one.name for one in out if not one.reason] == []
    twice = [a.name for a in out for b in out if a is not b and b.covers(a.name)]
    assert twice == [], "one name is enough"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_tempest_passes(
    runs: Mapping[str, list[Run]], all_tests: list[str], setting: Setting
) -> None:
    until = time.monotonic() + _TIMEOUT_S
    outcomes: dict[str, Outcome] = {}
    for run in runs[setting.name]:
        outcomes |= run.outcomes(until - time.monotonic())
    bad = {name: one.said for name, one in outcomes.items() if not _as_it_should(one, setting)}
    assert not bad, "\n\n".join(f"{name}\n{said}" for name, said in bad.items())
    wanted = tempest_tool.chosen(all_tests, setting.min_microversion)
    without_outcome = [test for test in wanted if not {test, _class_of(test)} & outcomes.keys()]
    assert not without_outcome


def _as_it_should(outcome: Outcome, setting: Setting) -> bool:
    """Only with a least version may a class be skipped: one whose newest version is older."""
    if outcome.status == "skip":
        return setting is HIGH and outcome.said.strip().startswith(OUT_OF_RANGE)
    return outcome.status == "success"


def _class_of(test: str) -> str:
    """Return the name under which a class is skipped as a whole."""
    return f"setUpClass ({test.rpartition('.')[0]})"


def _shares(tests: Sequence[str]) -> list[list[str]]:
    """Deal out the tests, those of one class to one process: they share its servers."""
    by_class = collections.defaultdict(list)
    for test in tests:
        by_class[test.rpartition(".")[0]].append(test)
    shares: list[list[str]] = [[] for _ in range(_PROCESSES)]
    for of_class in sorted(by_class.values(), key=len, reverse=True):
        min(shares, key=len).extend(of_class)
    return shares
