# SPDX-License-Identifier: Apache-2.0
"""Our own snapshots, asked for by REST like any user's: from the POST to the end of the job.

The end is the agent's own word, to the microsecond: verified, published, and
everything given back.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import libvirt
import libvirt_qemu

from tools.bench import client
from tools.bench.figures import Sample
from tools.bench.stage import Stage
from tools.stack.guest import Guest

_MB = 1e6
_INCREMENTAL = {"stillframe:incremental": "true"}
_CLUSTER_BYTES = 64 << 10
_CHANGED_SHARE = 0.01
_DEVICE = "/machine/peripheral/virtio-disk0/virtio-backend"


def snapshot(stage: Stage, *, limit_mb_s: int = 0) -> Sample:
    """Take a snapshot of the running guest; `limit_mb_s` is only noted in the sample."""
    return _measured(stage, stage.guest, limit_mb_s=limit_mb_s)


def offline(stage: Stage) -> Sample:
    """Take a snapshot of the guest that is off; the running one is idle beside it."""
    return _measured(stage, stage.off, pauses_ms=(), silent_ms=None)


def increment(stage: Stage) -> Sample:
    """Take a full snapshot, change 1 % of its bytes, and measure the increment alone."""
    full = client.ask(stage.cloud, stage.guest)
    size_bytes = full.ended()["size_bytes"]
    _change(stage, round(size_bytes * _CHANGED_SHARE / _CLUSTER_BYTES))
    try:
        return _measured(stage, stage.guest, metadata=_INCREMENTAL)
    finally:
        client.delete(stage.cloud, full.image_id)
        _forget_checkpoints(stage.domain)


def keep_bytes(stage: Stage) -> None:
    """Take a first snapshot, which also warms caches up; its bytes are what bare PUTs send."""
    first = client.ask(stage.cloud, stage.guest)
    first.ended()
    stage.put_source.hardlink_to(stage.cloud.glance.images / first.image_id)
    client.delete(stage.cloud, first.image_id)


def _measured(
    stage: Stage,
    guest: Guest,
    *,
    metadata: Mapping[str, str] = MappingProxyType({}),
    limit_mb_s: int = 0,
    **known: Any,
) -> Sample:
    with stage.meter(stage.agent) as meter:
        asked = client.ask(stage.cloud, guest, **metadata)
        job = asked.ended()
    client.delete(stage.cloud, asked.image_id)
    stream_s = next(
        step["ended_at"] - step["began_at"] for step in job["steps"] if step["name"] == "stream"
    )
    size_bytes, image = job["size_bytes"], job["images"][0]
    if image["why_full"]:
        raise RuntimeError(f"no increment came of it: {image['why_full']}")
    figures = {
        "wall_s": job["steps"][-1]["ended_at"] - asked.asked_at,
        "image_bytes": size_bytes,
        "hash_cpu_s": size_bytes * stage.hash_s_per_byte,
        "rate_mb_s": size_bytes / stream_s / _MB,
        "limit_mb_s": limit_mb_s or None,
    }
    return meter.sample(**figures | known)


def _change(stage: Stage, clusters: int) -> None:
    """Overwrite so many clusters, evenly spread over the data, through the guest's own disk.

    QEMU itself writes, on the device's behalf (`qemu-io` of its monitor): to
    the image and its bitmap it is a write of the guest, and it always is the same.
    """
    case = stage.case
    end = case.fill_from_bytes + (case.data_mib << 19)  # half of it: all of that is data
    step = (end - case.fill_from_bytes) // clusters // _CLUSTER_BYTES * _CLUSTER_BYTES
    for at in range(clusters):
        offset = case.fill_from_bytes + at * step
        command = f'qemu-io -d {_DEVICE} "write -P 254 {offset} {_CLUSTER_BYTES}"'
        said = libvirt_qemu.qemuMonitorCommand(
            stage.domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        )
        if said.strip() and "wrote" not in said:
            raise RuntimeError(f"QEMU did not write: {said}")


def _forget_checkpoints(domain: libvirt.virDomain) -> None:
    for checkpoint in domain.listAllCheckpoints():
        checkpoint.delete()
