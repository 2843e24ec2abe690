# SPDX-License-Identifier: Apache-2.0
"""How long a guest stands still, by disk and by the host's settings.

Three kinds of stop alternate on one guest after the other: bare, as one would
write it, ours. Ours are whole snapshots, asked for by REST and cancelled when
the guest runs again, so hardly any data is needed.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

from tools.bench.cases import Case
from tools.bench.figures import Row, Sample
from tools.bench.goals import Goal, Ratios
from tools.bench.stage import Stage, listening, private_cloud, say
from tools.bench.ways import stops

_SEED = 20261125
_PIECES = 16_384

CASES = (
    Case(name="1 GiB", size_gib=1, data_mib=0, writes=False),
    Case(name="1 GiB, writing", size_gib=1, data_mib=0, writes=True),
    Case(name="100 GiB", size_gib=100, data_mib=0, writes=False),
    Case(name="100 GiB, fragmented", size_gib=100, data_mib=0, writes=False, pieces=_PIECES),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host's settings, and how many times a bare stop ours may take."""

    name: str
    qemu_conf: str
    bound: float


HOSTS = (
    Host(name="qemu.conf as it comes", qemu_conf="", bound=15),
    Host(
        name="namespaces, remember_owner off",
        qemu_conf="namespaces = []\nremember_owner = 0",
        bound=9,
    ),
)
ORDER = tuple(stops.STOPS)


def run(count: int) -> list[Sample]:
    """Stop each guest so many times in each way, on each kind of host."""
    shuffler = random.Random(_SEED)  # noqa: S311 # the same order each time
    samples: list[Sample] = []
    for host in HOSTS:
        with private_cloud(extra_qemu_conf=host.qemu_conf) as cloud, listening(cloud) as hypervisor:
            for case in CASES:
                named = dataclasses.replace(case, name=f"{case.name}; {host.name}")
                with Stage(cloud, hypervisor, named, 0) as stage:
                    say(f"{named.name}: {count} stops of each kind")
                    for _ in range(count):
                        samples += stops.each(stage, shuffler)
    return samples


def goals(_rows: Sequence[Row], ratios_by_case: Ratios) -> Iterator[Goal]:
    """Yield the goals of each case."""
    for case, of in ratios_by_case.items():
        host = next(host for host in HOSTS if case.endswith(host.name))
        yield Goal(name=f"{case}: stop / bare", figure=of["pause_vs_bare"], bound=host.bound)
        yield Goal(
            name=f"{case}: stop / straightforward",
            figure=of["pause_vs_straightforward"],
            bound=0.5,
        )
