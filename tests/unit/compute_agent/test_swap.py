# SPDX-License-Identifier: Apache-2.0
"""At every instant of a swap its path is one whole disk, and from every instant there is a way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from compute_agent.swap import Swap

JOB = "0badcafe-0000-4000-8000-000000000000"
OLD, NEW, BASE = b"old disk", b"new disk", b"base"


class Killed(BaseException):
    """The agent dies here."""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "vm.qcow2"
    path.write_bytes(OLD)
    path.chmod(0o640)
    return path


@pytest.fixture
def swap(disk: Path) -> Swap:
    """A swap whose new disk, on a base, is built."""
    swap = Swap.of(disk, JOB, below=disk.parent / "image.qcow2")
    swap.make_room()
    swap.new.write_bytes(NEW)
    assert swap.base is not None
    swap.base.write_bytes(BASE)
    return swap


def test_the_new_disk_takes_the_old_ones_place_and_looks_like_it(disk: Path, swap: Swap) -> None:
    swap.swap()
    assert (disk.read_bytes(), swap.old.read_bytes()) == (NEW, OLD)
    assert disk.stat().st_mode & 0o7777 == 0o640
    swap.settle()
    assert disk.read_bytes() == NEW
    assert swap.base is not None
    assert swap.base.read_bytes() == BASE
    assert not swap.room.exists()


def test_put_back_everything_is_what_it_was(disk: Path, swap: Swap) -> None:
    inode = disk.stat().st_ino
    swap.swap()
    for _ in range(2):
        swap.put_back()
        assert (disk.read_bytes(), disk.stat().st_ino) == (OLD, inode)
        assert os.listdir(disk.parent) == [disk.name]


def _killed_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """Let the agent die before the so-manieth change of names; return how many there were."""
    made = [0]

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def change(*arguments: object, **more: object) -> object:
            made[0] += 1
            if made[0] == number:
                raise Killed
            return real(*arguments, **more)

        return change

    changes = ((os, "link"), (Path, "rename"), (os, "fsync"), (Path, "unlink"), (shutil, "rmtree"))
    for owner, name in changes:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    return lambda: made[0]


@pytest.mark.parametrize("number", range(1, 5))
def test_a_kill_at_any_instant_leaves_one_whole_disk_and_the_way_back(
    disk: Path, swap: Swap, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        _killed_at(patch, number)
        with pytest.raises(Killed):
            swap.swap()
    assert disk.read_bytes() in (OLD, NEW)
    again = Swap.from_facts(swap.facts())
    assert again == swap
    again.put_back()
    assert disk.read_bytes() == OLD
    assert os.listdir(disk.parent) == [disk.name]


def test_those_were_all_the_instants(swap: Swap, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        count = _killed_at(patch, -1)
        swap.swap()
        assert count() == 4


def test_a_kill_while_it_is_put_back_leaves_the_way_back(
    disk: Path, swap: Swap, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap.swap()
    for number in (1, 2):
        with monkeypatch.context() as patch:
            _killed_at(patch, number)
            with pytest.raises(Killed):
                swap.put_back()
    swap.put_back()
    assert disk.read_bytes() == OLD
    assert os.listdir(disk.parent) == [disk.name]


def test_as_long_as_something_is_left_so_is_the_room(
    disk: Path, swap: Swap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By that is known, after a crash, that there is something to do."""
    for number in (1, 2):
        with monkeypatch.context() as patch:
            _killed_at(patch, number)
            with pytest.raises(Killed):
                swap.discard()
        assert swap.room.exists()
    swap.discard()
    assert os.listdir(disk.parent) == [disk.name]


def test_only_a_base_that_a_rebuild_has_made_for_this_disk_goes_with_it(disk: Path) -> None:
    first = Swap.of(disk, JOB, below=disk.parent / "image.qcow2")
    assert (first.old_base, first.base is None) == (None, False)
    second = Swap.of(disk, JOB.replace("0", "1"), below=first.base)
    assert second.old_base == first.base != second.base
    elsewhere = disk.parent / "other" / f"{disk.name}.stillframe-base-0badcafe"
    assert Swap.of(disk, JOB, below=elsewhere).old_base is None
    assert Swap.of(disk, JOB, below=None).base is None


def test_a_job_id_that_comes_again_costs_the_disk_no_base(disk: Path, swap: Swap) -> None:
    """The journal remembers ids for a week; whoever casts may choose his own."""
    swap.swap()
    swap.settle()
    assert swap.base is not None
    for _ in range(3):
        again = Swap.of(disk, JOB, below=swap.base)
        again.make_room()
        assert swap.base.read_bytes() == BASE
        assert again.old_base == swap.base
        assert again.base not in (None, swap.base)
        again.new.write_bytes(NEW)
        again.base.write_bytes(BASE)
        again.swap()
        again.settle()
        assert sorted(os.listdir(disk.parent)) == sorted([disk.name, again.base.name])
        swap = again


def test_what_an_earlier_try_left_in_the_room_is_removed(disk: Path) -> None:
    swap = Swap.of(disk, JOB, below=None)
    swap.make_room()
    swap.new.write_bytes(NEW)
    swap.make_room()
    assert os.listdir(swap.room) == []
    assert swap.room.stat().st_mode & 0o7777 == 0o700
