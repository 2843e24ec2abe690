# SPDX-License-Identifier: Apache-2.0
"""The sizes that a new server may have, as the operator wrote them down."""

from __future__ import annotations

import re
from collections.abc import Mapping

from common.errors import ConfigurationError
from common.reports import Flavor

_SIZES = re.compile(r"(\d{1,5})/(\d{1,9})/(\d{1,7})")
#: What Nova lets a flavor be called.
_NAME = re.compile(r"[\w.@() :-]{1,255}")


def read(written: Mapping[str, str]) -> dict[str, Flavor]:
    """Return the flavors by name; raise ConfigurationError naming the one that cannot be."""
    return {name.strip(): _flavor(name.strip(), sizes) for name, sizes in written.items()}


def _flavor(name: str, sizes: str) -> Flavor:
    found = _SIZES.fullmatch(sizes.strip())
    if found is None or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"[spawn] flavors: {name}:{sizes} is not NAME:VCPUS/MEMORY/DISK (1/512/1)"
        )
    vcpus, memory_mib, disk_gib = map(int, found.groups())
    if not (vcpus and memory_mib):
        raise ConfigurationError(f"[spawn] flavors: {name} needs a processor and memory")
    return Flavor(name=name, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)
