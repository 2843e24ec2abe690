# SPDX-License-Identifier: Apache-2.0
"""A private system-mode libvirtd: in a mount namespace it sees directories of its own.

/run/libvirt, /etc/libvirt and the rest are bound to ours, so the daemon, its
guests and its sockets are apart from a libvirtd that the machine may run. Its
capabilities cache is kept: probing QEMU takes a minute.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tools.stack.process import Process

_START_TIMEOUT_S = 60.0
_GUEST_END_TIMEOUT_S = 30.0
#: On a tmpfs, as /run is on a real host, and short: a socket's path may have 107 bytes.
_RUN_ROOT = Path("/dev/shm")  # noqa: S108 # a tmpfs is what is wanted

_QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
stdio_handler = "file"
{extra}
"""
_LIBVIRTD_CONF = """\
unix_sock_rw_perms = "0700"
auth_unix_rw = "none"
auth_unix_ro = "none"
max_clients = 100
log_filters = "3:*"
log_outputs = "3:file:{here}/libvirtd.log"
"""
_ENTER = """
set -e
mount --make-rprivate /
for pair in "$@"; do mount --bind "${pair%%:*}" "${pair##*:}"; done
exec /usr/sbin/libvirtd --pid-file "$RUN/libvirtd.pid" --config /etc/libvirt/libvirtd.conf
"""


class Libvirtd:
    """One daemon. `extra_qemu_conf` are more lines for its qemu.conf."""

    def __init__(self, directory: Path, cache: Path, extra_qemu_conf: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._cache = cache / "libvirt"
        self._extra_qemu_conf = extra_qemu_conf
        self.process = Process("libvirtd", directory)
        short = hashlib.sha256(str(directory).encode()).hexdigest()[:8]
        #: For sockets and pid files; gone after `stop`.
        self.run = _RUN_ROOT / f"sf-{short}"

    @property
    def uri(self) -> str:
        """What libvirt clients connect to."""
        return f"qemu+unix:///system?socket={self.run}/libvirt-sock"

    def start(self) -> None:
        """Start the daemon, if it does not run, and wait until it answers."""
        if self.process.pid is None:
            self._configure()
            pairs = [f"{ours}:{theirs}" for ours, theirs in self._bound().items()]
            self.process.start(
                ["unshare", "--mount", "bash", "-c", _ENTER, "enter", *pairs],
                environment={"RUN": str(self.run)},
            )
        self.process.wait_until(self._answers, _START_TIMEOUT_S)

    def restart(self) -> None:
        """Stop the daemon alone and start it again; guests run on meanwhile."""
        self.process.stop()
        self.start()

    def stop(self) -> None:
        """End every guest and the daemon, and remove its run directory."""
        if self.process.pid is not None:
            with contextlib.suppress(subprocess.SubprocessError):
                for name in self.virsh("list", "--name").split():
                    self.virsh("destroy", name)
        self.process.stop()
        self._end_guests_left()
        shutil.rmtree(self.run, ignore_errors=True)

    def virsh(self, *arguments: str, check: bool = True) -> str:
        """Run virsh on the daemon and return what it prints (with `check`, only if it succeeds)."""
        command = ["virsh", "-q", "-c", self.uri, *arguments]
        return subprocess.run(
            command, check=check, capture_output=True, text=True, timeout=120
        ).stdout

    def _end_guests_left(self) -> None:
        """Kill the guests of a daemon that died or hung before it could end them."""
        pids = {int(record.read_text()) for record in (self.run / "qemu").glob("*.pid")}
        for pid in filter(self._is_ours, pids):
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _GUEST_END_TIMEOUT_S
        while left := [pid for pid in pids if self._is_ours(pid)]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"killed, yet not gone: guests with process ids {left}")
            time.sleep(0.05)

    def _is_ours(self, pid: int) -> bool:
        """Tell a guest of ours from a stranger with its old id: it sees our run directory."""
        try:
            mounts = Path(f"/proc/{pid}/mountinfo").read_text()
        except OSError:
            return False
        return f"/{self.run.name} /run/libvirt " in mounts

    def _answers(self) -> bool:
        try:
            self.virsh("version")
        except subprocess.CalledProcessError:
            return False
        return True

    def _bound(self) -> dict[Path, str]:
        here = self._directory
        return {
            self.run: "/run/libvirt",
            here / "lib": "/var/lib/libvirt",
            here / "etc": "/etc/libvirt",
            here / "log": "/var/log/libvirt",
            self._cache: "/var/cache/libvirt",
        }

    def _configure(self) -> None:
        for ours, theirs in self._bound().items():
            ours.mkdir(parents=True, exist_ok=True)
            Path(theirs).mkdir(parents=True, exist_ok=True)
        # For its networks; elsewhere libvirt's package makes it.
        (self._directory / "lib" / "dnsmasq").mkdir(exist_ok=True)
        etc = self._directory / "etc"
        (etc / "qemu.conf").write_text(_QEMU_CONF.format(extra=self._extra_qemu_conf))
        (etc / "libvirtd.conf").write_text(_LIBVIRTD_CONF.format(here=self._directory))
