# SPDX-License-Identifier: Apache-2.0
"""What a snapshot costs: the guest's pause and silence, wall time, bytes, memory, CPU.

Each snapshot stands between two bare PUTs of the same bytes to the same Glance;
wall time is told as the ratio to their mean, since the machine's speed drifts.
Cases differ in virtual size and data; rounds are interleaved.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import requests

from tools.demo import CACHE
from tools.stack import glance
from tools.stack.cloud import Cloud
from tools.stack.guest import Guest, GuestWish, build_image, choose_accelerator

_TIMEOUT_S = 600.0
_MIB = 2**20
_WRITE_MIB = 512
_TOKEN = {"X-Auth-Token": "demo:demo", "OpenStack-API-Version": "compute 2.96"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A guest's disk: its virtual size, and data written beside the image's own."""

    name: str
    size_gib: int
    fill_mib: int
    running: bool = True


CASES = (
    Case(name="1 GiB disk", size_gib=1, fill_mib=0),
    Case(name="20 GiB disk", size_gib=20, fill_mib=2048),
    Case(name="100 GiB disk", size_gib=100, fill_mib=0),
    Case(name="1 GiB disk, shut off", size_gib=1, fill_mib=0, running=False),
)


def run(cases: Iterable[Case], rounds: int) -> dict[str, Any]:
    """Run every case `rounds` times on a private cloud; return `{"rows": [...]}`."""
    image = build_image(CACHE / "guest", 1024, 256)
    glance.make_venv(CACHE / "venv-glance")
    with tempfile.TemporaryDirectory(prefix="stillframe-bench-") as directory:
        cloud = Cloud(
            Path(directory),
            cache=CACHE,
            bin_directory=Path(sys.executable).parent,
            image=image,
            accelerator=choose_accelerator(image, CACHE / "accelerator"),
        )
        try:
            cloud.start_parts()
            cloud.start_daemons()
            return {"rows": [_case(cloud, case, rounds) for case in cases]}
        finally:
            cloud.stop()


def table(report: dict[str, Any]) -> str:
    """Return the figures as a table for people."""
    columns = [key for key in report["rows"][0] if key != "case"]
    lines = [f"{'case':24}" + "".join(f"{column:>17}" for column in columns)]
    for row in report["rows"]:
        values = (f"{'-' if row[one] is None else row[one]:>17}" for one in columns)
        lines.append(f"{row['case']:24}" + "".join(values))
    return "\n".join(lines) + "\n"


def _case(cloud: Cloud, case: Case, rounds: int) -> dict[str, Any]:
    guest = _guest(cloud, case)
    agent_memory = _agent_memory_mib(cloud)
    results = [_round(cloud, guest, case) for _ in range(rounds)]
    row = {
        "case": case.name,
        "image_mib": round(results[0]["size_bytes"] / _MIB),
        "pause_ms_p50": _median(one["pause_ms"] for one in results),
        "pause_ms_max": _largest(one["pause_ms"] for one in results),
        "silent_ms_max": _largest(one["silent_ms"] for one in results),
        "wall_s_p50": _median(one["wall_s"] for one in results),
        "wall_vs_put": _median(one["wall_vs_put"] for one in results),
        "read_ratio": _median(one["read_ratio"] for one in results),
        "scratch_mib_max": _largest(one["scratch_mib"] for one in results),
        "cpu_s_p50": _median(one["cpu_s"] for one in results),
        "rss_before_mib": agent_memory,
        "rss_peak_mib": _largest(one["rss_mib"] for one in results),
    }
    guest.remove()
    return row


def _guest(cloud: Cloud, case: Case) -> Guest:
    name = f"bench-{case.size_gib}{'' if case.running else '-off'}"
    guest = cloud.guest(GuestWish(name=name, size_gib=case.size_gib))
    guest.define()
    if case.fill_mib:
        # Beyond the partitions, a byte that is no zero: data like any other to the reader.
        starts = range(2048, 2048 + case.fill_mib, _WRITE_MIB)
        writes = [part for at in starts for part in ("-c", f"write -P 165 {at}M {_WRITE_MIB}M")]
        command = ["qemu-io", "-f", "qcow2", *writes, str(guest.disk)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    if case.running:
        guest.start()
    cloud.wait_for_instance(guest, "ACTIVE" if case.running else "SHUTOFF")
    return guest


def _round(cloud: Cloud, guest: Guest, case: Case) -> dict[str, Any]:
    subprocess.run(["sync"], check=True, timeout=120)
    with _Watch(cloud, guest if case.running else None) as watch:
        began = time.monotonic()
        image_id = _ask(cloud, guest)
        job = _wait_for_job(cloud, guest, image_id)
        ended = time.monotonic()
    put_s = [_put(cloud, image_id) for _ in range(2)]
    _delete(cloud, image_id)
    wall_s = job["finished_at_s"] - began
    return {
        "size_bytes": job["size_bytes"],
        "pause_ms": job["capture"]["pause_ms"],
        "silent_ms": guest.console.longest_gap_ms(began, ended) if case.running else None,
        "wall_s": wall_s,
        "wall_vs_put": wall_s / statistics.mean(put_s),
        "read_ratio": watch.read_bytes / job["size_bytes"] if case.running else None,
        "scratch_mib": watch.scratch_bytes / _MIB,
        "cpu_s": watch.cpu_s,
        "rss_mib": watch.rss_mib,
    }


def _ask(cloud: Cloud, guest: Guest) -> str:
    url = f"{cloud.api_url}/v2.1/servers/{guest.uuid}/action"
    body = {"createImage": {"name": "bench"}}
    answer = requests.post(url, json=body, headers=_TOKEN, timeout=30)
    answer.raise_for_status()
    return str(answer.json()["image_id"])


def _wait_for_job(cloud: Cloud, guest: Guest, image_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        jobs = cloud.get(f"/v1/jobs?instance_uuid={guest.uuid}")["jobs"]
        job: dict[str, Any] = next(one for one in jobs if one["image_id"] == image_id)
        if job["finished_at"]:
            if job["state"] != "done":
                raise SystemExit(f"the snapshot failed: {job['reason']}")
            return {**job, "finished_at_s": time.monotonic()}
        time.sleep(0.05)
    raise SystemExit("the snapshot does not end")


def _put(cloud: Cloud, image_id: str) -> float:
    """Return how long a bare PUT of the image's bytes to the same Glance takes, in seconds."""
    copy = str(uuid.uuid4())
    record = {"id": copy, "name": "put", "disk_format": "qcow2", "container_format": "bare"}
    url = f"{cloud.glance.endpoint}/v2/images"
    requests.post(url, json=record, timeout=30).raise_for_status()
    with (cloud.glance.images / image_id).open("rb") as data:
        began = time.monotonic()
        headers = {"Content-Type": "application/octet-stream"}
        body = _Chunks(data, (cloud.glance.images / image_id).stat().st_size)
        answer = requests.put(f"{url}/{copy}/file", data=body, headers=headers, timeout=300)
        took_s = time.monotonic() - began
    answer.raise_for_status()
    _delete(cloud, copy)
    return took_s


class _Chunks:
    """A file as a body of 1 MiB pieces, as the agent sends them."""

    def __init__(self, file: Any, length: int) -> None:
        self._file = file
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self._file.read(_MIB):
            yield chunk


def _delete(cloud: Cloud, image_id: str) -> None:
    requests.delete(f"{cloud.glance.endpoint}/v2/images/{image_id}", timeout=30)


class _Watch:
    """Looks at the agent's process and the scratch directory while a snapshot runs."""

    def __init__(self, cloud: Cloud, guest: Guest | None) -> None:
        self._cloud = cloud
        self._qemu = _qemu_pid(cloud, guest) if guest else None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.scratch_bytes = 0
        self.rss_mib = 0.0
        self.cpu_s = 0.0
        self.read_bytes = 0

    def __enter__(self) -> _Watch:
        self._cpu_before, self._read_before = self._cpu_s(), self._read_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.cpu_s = self._cpu_s() - self._cpu_before
        self.read_bytes = self._read_bytes() - self._read_before

    def _look(self) -> None:
        scratch = self._cloud.directory / "scratch"
        while not self._over.wait(0.1):
            used = 0
            for file in scratch.rglob("*"):
                try:
                    used += file.stat().st_blocks * 512
                except FileNotFoundError:
                    continue
            self.scratch_bytes = max(self.scratch_bytes, used)
            self.rss_mib = max(self.rss_mib, _agent_memory_mib(self._cloud))

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._cloud.agent.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def _read_bytes(self) -> int:
        """What QEMU fetched from its disks (which it opens without the page cache)."""
        if self._qemu is None:
            return 0
        text = Path(f"/proc/{self._qemu}/io").read_text()
        return int(text.split("\nread_bytes:")[1].split()[0])


def _qemu_pid(cloud: Cloud, guest: Guest) -> int:
    return int((cloud.libvirtd.run / "qemu" / f"{guest.name}.pid").read_text())


def _agent_memory_mib(cloud: Cloud) -> float:
    text = Path(f"/proc/{cloud.agent.pid}/status").read_text()
    return round(int(text.split("VmRSS:")[1].split()[0]) / 1024, 1)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 2) if known else None


def _largest(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(max(known), 1) if known else None
