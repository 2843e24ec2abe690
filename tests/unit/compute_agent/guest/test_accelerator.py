# SPDX-License-Identifier: Apache-2.0
"""KVM is chosen where it really runs a guest, and only where nobody has chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from compute_agent.guest import accelerator


@pytest.mark.parametrize("wanted", ["kvm", "qemu"])
def test_what_the_operator_chose_is_not_tried(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_runs_with", lambda _: pytest.fail("it was tried"))
    assert accelerator.virt_type(wanted) == wanted


@pytest.mark.parametrize(
    ("there", "runs", "found"),
    [(True, True, "kvm"), (True, False, "qemu"), (False, True, "qemu")],
)
def test_kvm_that_is_not_there_or_runs_nothing_is_not_chosen(
    there: bool, runs: bool, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    if there:
        device.touch()
    monkeypatch.setattr(accelerator, "_KVM", device)
    monkeypatch.setattr(accelerator, "_runs_with", lambda _: runs)
    assert accelerator.virt_type("auto") == found


def test_the_probe_sees_a_guest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # Software emulation runs everywhere; here nothing hangs on how long it takes.
    monkeypatch.setattr(accelerator, "_PROBE_S", 60)
    assert accelerator._runs_with("tcg")


def test_the_probe_sees_that_none_runs() -> None:
    assert not accelerator._runs_with("no-such-accelerator")
