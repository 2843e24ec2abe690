# SPDX-License-Identifier: Apache-2.0
"""Role by role: who may do what, and that each rule in use is documented."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from oslo_config import cfg

from api_service import policies
from api_service.errors import Forbidden
from common import context

MINE, THEIRS = "p-demo", "p-other"
READ = ("os_compute_api:servers:show", "os_compute_api:servers:detail", "stillframe:jobs:show")
WRITE = ("os_compute_api:servers:create_image",)
ADMIN = ("os_compute_api:os-services:list", "os_compute_api:servers:index:get_all_tenants")


@pytest.fixture(scope="module")
def authorizer() -> policies.Authorizer:
    conf = cfg.ConfigOpts()
    conf([], project="stillframe", default_config_files=[], default_config_dirs=[])
    return policies.Authorizer(conf)


def caller(*roles: str) -> context.RequestContext:
    """Return somebody of project p-demo."""
    return context.new(user_id="u", project_id=MINE, roles=list(roles))


@pytest.mark.parametrize(
    ("roles", "own", "others"),
    [
        ((), set(), set()),
        (("reader",), set(READ), set()),
        (("member", "reader"), {*READ, *WRITE}, set()),
        (("admin", "member", "reader"), {*READ, *WRITE, *ADMIN}, {*READ, *WRITE, *ADMIN}),
    ],
)
def test_a_role_may_exactly_this(
    authorizer: policies.Authorizer, roles: tuple[str, ...], own: set[str], others: set[str]
) -> None:
    rules = (*READ, *WRITE, *ADMIN)
    who = caller(*roles)
    assert {rule for rule in rules if authorizer.allows(who, rule, MINE)} == own
    assert {rule for rule in rules if authorizer.allows(who, rule, THEIRS)} == others


def test_a_refusal_names_the_rule(authorizer: policies.Authorizer) -> None:
    with pytest.raises(Forbidden, match="os-services:list"):
        authorizer.require(caller("member"), "os_compute_api:os-services:list")


def test_every_rule_that_the_code_asks_for_is_registered() -> None:
    known = {rule.name for rule in policies.list_rules()}
    resources = Path(policies.__file__).parents[1] / "resources"
    asked = {
        found
        for path in resources.rglob("*.py")
        for found in re.findall(r'"((?:os_compute_api|stillframe):[a-z:_-]+)"', path.read_text())
    }
    assert asked
    assert asked <= known


def test_a_changed_policy_is_obeyed_when_it_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = tmp_path / "policy.yaml"
    written.write_text('"stillframe:jobs:show": "!"')
    conf = cfg.ConfigOpts()
    conf([], project="stillframe", default_config_files=[], default_config_dirs=[])
    policies.Authorizer(conf)  # its options are there now
    conf.set_override("policy_file", str(written), group="oslo_policy")
    authorizer = policies.Authorizer(conf)
    member = caller("member", "reader")
    assert not authorizer.allows(member, "stillframe:jobs:show", MINE)

    written.write_text('"stillframe:jobs:show": "@"')
    os.utime(written, (2e9, 2e9))  # whatever the clock's steps
    monkeypatch.setattr(policies, "_LOOK_S", 3600.0)
    assert not authorizer.allows(member, "stillframe:jobs:show", MINE), "not looked at again yet"
    monkeypatch.setattr(policies, "_LOOK_S", 0.0)
    assert authorizer.allows(member, "stillframe:jobs:show", MINE)
