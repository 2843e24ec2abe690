# SPDX-License-Identifier: Apache-2.0
"""What the documents show of configuration files can be copied as it is."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from keystoneauth1 import loading as keystone_loading
from oslo_config import cfg

from common import conf

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GENERATOR = ROOT / "etc" / "generators" / "config.conf"
#: Options that come with `auth_type = password`, and stand in no list.
AUTH_GROUPS = ("glance", "keystone_authtoken")


def samples() -> list[tuple[str, str]]:
    """Return each block of a document, by where it stands, and the file that is to be copied."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for block in re.finditer(r"^```ini\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, block.start()) + 2
            found.append((f"{document.name}:{line}", block.group(1)))
    broker = ROOT / "etc" / "stillframe" / "rabbitmq.conf"
    return [*found, (broker.name, broker.read_text())]


SAMPLES = [pytest.param(text, id=place) for place, text in samples()]


def options() -> cfg.ConfigOpts:
    """Return all options of ours, and those of the libraries that our sample has."""
    made = cfg.ConfigOpts()
    conf.register(made)
    names = re.findall(r"^namespace = (.+)$", GENERATOR.read_text(), re.MULTILINE)
    for entry in entry_points(group="oslo.config.opts"):
        if entry.name in names:
            for group, listed in entry.load()():
                made.register_opts(listed, group=None if group == "DEFAULT" else group)
    for option in keystone_loading.get_auth_plugin_conf_options("password"):
        # A sample need not say all of what a daemon needs.
        option.required = False
        for group in AUTH_GROUPS:
            made.register_opt(option, group=group)
    return made


def said(file: Path) -> list[tuple[str, str]]:
    """Return each group and option that a file names."""
    sections: dict[str, dict[str, list[str]]] = {}
    cfg.ConfigParser(str(file), sections).parse()
    return [(group, name) for group, values in sections.items() for name in values]


def unreadable(file: Path) -> list[str]:
    """Return the options of a file that do not exist, and those whose values cannot be."""
    made, wrong = options(), []
    try:
        made([], project=conf.PROJECT, default_config_files=[str(file)], default_config_dirs=[])
    except (cfg.Error, ValueError) as error:
        return [str(error)]
    for group, name in said(file):
        try:
            _ = made[name] if group == "DEFAULT" else made[group][name]
        except (cfg.Error, ValueError) as error:
            wrong.append(str(error))
    return wrong


def commented(text: str) -> list[str]:
    """Return the lines, also of options to be uncommented, that go on with a comment."""
    return re.findall(r"^(?:# ?)?\w+ *=.* #.*$", text, re.MULTILINE)


@pytest.mark.parametrize("text", SAMPLES)
def test_a_sample_can_be_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "copied.conf"
    file.write_text(text)
    assert not unreadable(file)


@pytest.mark.parametrize("text", SAMPLES)
def test_a_value_has_no_comment_behind_it(text: str) -> None:
    """oslo.config knows none: it would be a part of the value."""
    assert not commented(text)


@pytest.mark.parametrize(
    "line",
    [
        "bind_port = 8774   # Nova's",
        "bind_prot = 8774",
        "[glance]\nendpoint_overide = http://glance",
        "[keystone_authtoken]\nuser_name = stillframe",
    ],
)
def test_a_wrong_sample_is_noticed(line: str, tmp_path: Path) -> None:
    file = tmp_path / "copied.conf"
    file.write_text(f"[api]\n{line}\n")
    assert unreadable(file)
