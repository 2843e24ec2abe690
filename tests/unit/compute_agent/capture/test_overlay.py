# SPDX-License-Identifier: Apache-2.0
"""What becomes of an overlay: nothing that a guest wrote is ever removed unmerged."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import qemu_img
from common.errors import CaptureFailed, InstanceBusy, InstanceNotFound
from compute_agent.capture import overlay as overlays
from compute_agent.capture.base import CaptureTarget, Plan
from compute_agent.capture.overlay import OverlayCapture
from compute_agent.capture.space import Reservations
from compute_agent.capture.workspace import Workspace
from compute_agent.disks.qemu_nbd import QemuNbdError
from compute_agent.guest.description import Disk
from compute_agent.guest.errors import HypervisorError, HypervisorUnavailable
from tests.unit.compute_agent.stage import disk_of

SIZE = 4 << 20
WHAT_IT_WROTE = b"\xaa" * 65536


class Guest:
    """A guest whose disks are where `sources` says; notes what is done to it."""

    uuid = "guest"

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        self.active, self.number, self.gone = True, "5", False
        self.stands_still = False
        self.done: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.on_commit: Callable[[], None] = lambda: None

    def do(self, what: str) -> None:
        self.done.append(what)
        if what in self.fails:
            raise self.fails[what]

    def source_path(self, target: str) -> str | None:
        if self.gone:
            raise InstanceNotFound("gone")
        return self.sources.get(target)

    def is_active(self) -> bool:
        return self.active

    def process_id(self) -> str | None:
        return self.number if self.active else None

    def process_owner(self) -> None:
        return None

    def switch_xml(self, paths: dict[str, str]) -> str:
        assert not self.stands_still, "it is worked out beforehand"
        return json.dumps(paths)

    def switch_to_overlays(self, switch_xml: str) -> None:
        self.do("switch")
        self.sources.update(json.loads(switch_xml))

    def merge_overlay(self, target: str, base: str) -> None:
        self.do(f"merge {target}")
        qemu_img.commit(Path(self.sources[target]), base=base)

    def leave_overlay(self, target: str) -> None:
        self.sources[target] = self.sources[target].partition(".stillframe-")[0]
        self.do(f"leave {target}")

    def point_disk_at(self, disk: Disk) -> None:
        self.do(f"point {disk.target}")
        assert disk.path
        self.sources[disk.target] = disk.path

    def write(self, target: str) -> None:
        """Write one cluster to where the disk is now."""
        io(self.sources[target], "write -P 0xaa 0 64k")


def io(path: str, command: str) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path], check=True, capture_output=True)


def content(path: str) -> bytes:
    """Return the first cluster of what a guest would read from an image."""
    raw = Path(path).with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    return raw.read_bytes()[: len(WHAT_IT_WROTE)]


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    for name in ("scratch", "s"):
        (tmp_path / name).mkdir()
    return Workspace(scratch=tmp_path / "scratch" / "ab", sockets=tmp_path / "s" / "ab")


@pytest.fixture
def plan(tmp_path: Path, guest: Guest, workspace: Workspace) -> Plan:
    anything: Any = guest
    targets = []
    for name in ("vda", "vdb"):
        path = tmp_path / name
        qemu_img.create_scratch(path, SIZE)
        guest.sources[name] = str(path)
        targets.append(CaptureTarget(disk=disk_of(str(path), name), capacity_bytes=SIZE))
    return Plan(guest=anything, targets=tuple(targets), workspace=workspace)


@pytest.fixture
def begun(plan: Plan, guest: Guest) -> OverlayCapture:
    """A capture whose guest is on its overlays and has written to them."""
    capture = OverlayCapture(plan)
    capture.prepare()
    guest.stands_still = True
    capture.begin()
    guest.write("vda")
    guest.write("vdb")
    return capture


def left(plan: Plan) -> list[str]:
    """Return what is left of the capture, overlays and all."""
    roots = (plan.workspace.scratch.parent, plan.workspace.sockets.parent)
    found = [path.name for root in roots for path in root.iterdir()]
    beside = plan.workspace.scratch.parents[1].iterdir()
    return sorted(found + [path.name for path in beside if ".stillframe-" in path.name])


def assert_merged(plan: Plan, *names: str) -> None:
    for target in plan.targets:
        if target.name in names:
            assert content(target.path) == WHAT_IT_WROTE


def test_what_the_guest_wrote_is_on_its_disks_again_and_nothing_is_left(
    plan: Plan, guest: Guest, begun: OverlayCapture
) -> None:
    begun.end()
    begun.end()
    assert guest.done == ["switch", "merge vda", "leave vda", "merge vdb", "leave vdb"]
    assert_merged(plan, "vda", "vdb")
    assert left(plan) == []


def test_a_guest_that_is_off_is_put_back_by_qemu_img(
    plan: Plan, guest: Guest, begun: OverlayCapture
) -> None:
    guest.active = False
    OverlayCapture(plan).end()
    assert guest.done[1:] == ["point vda", "point vdb"]
    assert_merged(plan, "vda", "vdb")
    assert left(plan) == []


def test_an_overlay_that_another_host_may_run_on_is_kept(
    plan: Plan, guest: Guest, begun: OverlayCapture, caplog: pytest.LogCaptureFixture
) -> None:
    guest.gone = True
    begun.end()
    assert left(plan) == ["vda.stillframe-ab", "vdb.stillframe-ab"]
    (error, _) = (one for one in caplog.records if one.levelname == "ERROR")
    assert f"{begun.growing()[0]} is kept" in error.getMessage()
    assert "qemu-img commit -f qcow2" in error.getMessage()


def test_an_overlay_is_kept_when_somebody_put_the_guest_back_on_its_old_disk(
    plan: Plan, guest: Guest, begun: OverlayCapture
) -> None:
    """Nova's hard reboot does: the definition is written anew, the overlay has the writes."""
    guest.sources, guest.number = {one.name: one.path for one in plan.targets}, "6"
    begun.end()
    OverlayCapture(plan).end()
    assert left(plan) == ["vda.stillframe-ab", "vdb.stillframe-ab"]


def test_an_overlay_is_kept_when_that_happens_while_it_is_being_merged(
    plan: Plan, guest: Guest, begun: OverlayCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_active() -> bool:
        guest.sources, guest.number = {one.name: one.path for one in plan.targets}, "6"
        return True

    monkeypatch.setattr(guest, "is_active", is_active)
    begun.end()
    assert left(plan) == ["vda.stillframe-ab", "vdb.stillframe-ab"]


@pytest.mark.parametrize("gone", [False, True])
def test_an_overlay_that_nobody_wrote_to_goes_also_after_a_crash(
    plan: Plan, guest: Guest, gone: bool
) -> None:
    OverlayCapture(plan).prepare()
    guest.gone = gone
    OverlayCapture(plan).end()
    assert left(plan) == []


def test_an_empty_overlay_that_somebody_has_open_is_kept(
    plan: Plan, guest: Guest, tmp_path: Path
) -> None:
    capture = OverlayCapture(plan)
    capture.prepare()
    socket = f"--socket={tmp_path / 'elsewhere'}"
    command = ["qemu-nbd", "--format=qcow2", "--persistent", socket, str(capture.growing()[0])]
    with subprocess.Popen(command) as elsewhere:
        while not (tmp_path / "elsewhere").exists():
            assert elsewhere.poll() is None
        guest.gone = True
        OverlayCapture(plan).end()
        elsewhere.terminate()
    assert left(plan) == ["vda.stillframe-ab"]


def test_a_zero_that_was_written_is_something(plan: Plan, guest: Guest) -> None:
    capture = OverlayCapture(plan)
    capture.prepare()
    capture.begin()
    io(guest.sources["vda"], "write -z 0 64k")
    guest.gone = True
    capture.end()
    assert left(plan) == ["vda.stillframe-ab"]


def test_overlays_that_were_half_made_go(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise qemu_img.QemuImgError("the disk is full")

    monkeypatch.setattr(qemu_img, "create_overlay", fails)
    capture = OverlayCapture(plan)
    with pytest.raises(qemu_img.QemuImgError):
        capture.prepare()
    capture.end()
    assert left(plan) == []


def test_a_merge_that_nobody_lived_to_tell_of_is_known_by_the_same_qemu_on_the_disk(
    plan: Plan, guest: Guest, begun: OverlayCapture
) -> None:
    guest.fails["leave vda"] = HypervisorUnavailable("it was done, but the connection broke")
    with pytest.raises(HypervisorUnavailable):
        begun.end()
    assert left(plan) == ["ab", "ab", "ab-vda.merge", "vda.stillframe-ab"]
    OverlayCapture(plan).end()
    assert left(plan) == []


def test_another_qemu_on_the_disk_proves_no_merge(
    plan: Plan, guest: Guest, begun: OverlayCapture
) -> None:
    guest.fails["leave vda"] = HypervisorUnavailable("the connection broke")
    with pytest.raises(HypervisorUnavailable):
        begun.end()
    guest.number = "6"
    OverlayCapture(plan).end()
    assert left(plan) == ["vda.stillframe-ab"]


def test_a_commit_that_nobody_lived_to_tell_of_is_known_by_the_untouched_overlay(
    plan: Plan, guest: Guest, begun: OverlayCapture
) -> None:
    guest.active = False
    guest.fails["point vda"] = HypervisorUnavailable("the connection broke")
    with pytest.raises(HypervisorUnavailable):
        begun.end()
    guest.sources["vda"] = plan.targets[0].path
    OverlayCapture(plan).end()
    assert left(plan) == []


def test_a_guest_started_right_after_the_commit_is_merged_as_it_runs(
    plan: Plan, guest: Guest, begun: OverlayCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.active = False
    commit = qemu_img.commit

    def commit_and_start(overlay: Path, *, base: str) -> None:
        commit(overlay, base=base)
        guest.active = True

    monkeypatch.setattr(qemu_img, "commit", commit_and_start)
    begun.end()
    assert guest.done[1:] == ["merge vda", "leave vda", "merge vdb", "leave vdb"]
    assert left(plan) == []


def test_a_merge_that_fails_does_not_keep_the_other_disks_from_theirs(
    plan: Plan, guest: Guest, begun: OverlayCapture
) -> None:
    guest.fails["merge vda"] = HypervisorError("no")
    with pytest.raises(HypervisorError):
        begun.end()
    assert_merged(plan, "vdb")
    assert "vda.stillframe-ab" in left(plan)
    guest.fails.clear()
    OverlayCapture(plan).end()
    assert_merged(plan, "vda")
    assert left(plan) == []


def test_a_reader_that_does_not_end_keeps_no_disk_from_its_merge(
    plan: Plan, guest: Guest, begun: OverlayCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise QemuNbdError("it does not end")

    monkeypatch.setattr(begun._servers, "stop", stop)
    with pytest.raises(QemuNbdError):
        begun.end()
    assert_merged(plan, "vda", "vdb")


def test_a_guest_that_stays_on_its_overlay_is_not_given_back(
    plan: Plan, guest: Guest, begun: OverlayCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "leave_overlay", lambda _: None)
    with pytest.raises(InstanceBusy):
        begun.end()
    assert "vda.stillframe-ab" in left(plan)


def test_a_guest_that_went_away_leaves_only_what_was_written(
    plan: Plan, guest: Guest, begun: OverlayCapture
) -> None:
    qemu_img.create_overlay(
        begun.growing()[1],
        backing_file=plan.targets[1].path,
        backing_format="qcow2",
        size_bytes=SIZE,
    )
    overlays.give_up(plan.targets, plan.workspace)
    assert "vda.stillframe-ab" in left(plan)
    assert "vdb.stillframe-ab" not in left(plan)


def test_the_overlay_of_a_device_outlives_the_job_s_directory(
    plan: Plan, workspace: Workspace
) -> None:
    block = disk_of("/dev/vg/x", "vdc", source_type="block")
    device = CaptureTarget(disk=block, capacity_bytes=SIZE)
    path = OverlayCapture(plan).overlay_path(device)
    assert path == workspace.scratch.parent / "ab-vdc"


def test_room_is_kept_for_the_merge(plan: Plan, guest: Guest) -> None:
    capture = OverlayCapture(plan)
    assert capture.reserve_bytes() == 0
    capture.prepare()
    capture.begin()
    empty = capture.reserve_bytes()
    guest.write("vda")
    assert capture.reserve_bytes() >= empty + len(WHAT_IT_WROTE)
    capture.end()
    assert capture.reserve_bytes() == 0


def test_an_overlay_and_its_merge_must_both_find_room(
    tmp_path: Path, guest: Guest, workspace: Workspace
) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    anything: Any = guest
    (tmp_path / "vda").touch()
    disk = disk_of(str(tmp_path / "vda"))
    target = CaptureTarget(disk=disk, capacity_bytes=free * 2 // 3)
    plan = Plan(guest=anything, targets=(target,), workspace=workspace, scratch_reserve_percent=100)
    with pytest.raises(CaptureFailed, match="too little free space"):
        OverlayCapture(plan).prepare()


def test_the_room_of_an_open_capture_is_not_promised_to_another(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    monkeypatch.setattr(Reservations, "release", lambda _, holder: released.append(holder))
    capture = OverlayCapture(plan)
    capture.prepare()
    assert list(plan.reservations._shares) == ["ab"]
    plan.reservations._shares.clear()  # as if another agent went on
    capture.hold_room()
    assert list(plan.reservations._shares) == ["ab"]
    capture.end()
    assert released == ["ab"]
