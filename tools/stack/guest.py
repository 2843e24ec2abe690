# SPDX-License-Identifier: Apache-2.0
"""Guests of the private libvirtd: defined with our metadata, booted, and listened to."""

from __future__ import annotations

import dataclasses
import itertools
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.stack.libvirtd import Libvirtd

_BOOT_TIMEOUT_S = 180.0
_KVM_PROBE_S = 20.0

_DOMAIN = """\
<domain type='{accelerator}'>
  <name>{name}</name><uuid>{uuid}</uuid>
  <metadata>
    <stillframe:instance xmlns:stillframe="https://stillframe.dev/xmlns/instance/1.0">
      <stillframe:name>{name}</stillframe:name>
      <stillframe:flavor name="m1.tiny"><stillframe:memory>256</stillframe:memory>
        <stillframe:disk>{disk_gib}</stillframe:disk><stillframe:vcpus>1</stillframe:vcpus>
      </stillframe:flavor>
      <stillframe:owner><stillframe:user uuid="demo">demo</stillframe:user>
        <stillframe:project uuid="{project}">{project}</stillframe:project></stillframe:owner>
      <stillframe:root type="image" uuid="{image_ref}"/>
      <stillframe:image><stillframe:imageProperties>{properties}
      </stillframe:imageProperties></stillframe:image>
    </stillframe:instance>
  </metadata>
  <memory unit='MiB'>256</memory><vcpu>1</vcpu>{iothreads}
  <os><type arch='x86_64' machine='pc'>hvm</type>{boot}</os>
  <features><acpi/></features><cpu mode='maximum'/><clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}
    <serial type='unix'><source mode='bind' path='{console}'/><target port='0'/></serial>
    <channel type='unix'><source mode='bind'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/></channel>{interface}
    <memballoon model='none'/>
  </devices>
</domain>
"""
_DISK = """
    <disk type='file' device='disk'>
      <driver name='qemu' type='{format}' cache='none' io='native' discard='unmap'{iothread}/>
      <source file='{path}'/><target dev='{target}' bus='virtio'/></disk>"""
_INTERFACE = """
    <interface type='network'><source network='{network}'/><mac address='{mac}'/>
      <model type='virtio'/></interface>"""
_KERNEL = (
    "<kernel>{image}/vmlinuz</kernel><initrd>{image}/initrd</initrd>"
    "<cmdline>console=ttyS0 quiet panic=5 {options}</cmdline>"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuestWish:
    """What a guest shall be like."""

    name: str
    project: str = "demo"
    #: Boot from the disk's own boot loader rather than the kernel beside it.
    boot_from_disk: bool = False
    #: Options for the guest's `pulse` (see tools/guest/init).
    options: str = ""
    disk_format: str = "qcow2"
    #: Virtual size of the root disk; 0 is the image's own.
    size_gib: int = 0
    extra_disks: int = 0
    iothread: bool = False
    #: What its image says of it, as in Nova's metadata ("hw_qemu_guest_agent": "yes").
    image_properties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: A disk of this path is used as it is, instead of one made over the image.
    disk: Path | None = None
    #: The libvirt network that it is on, and its card's address there, of which it makes its own.
    network: str = ""
    mac: str = ""


class Console(threading.Thread):
    """Listens to a guest's serial console: its words, and its heartbeats with our time."""

    def __init__(self, path: Path) -> None:
        super().__init__(name=f"console-{path.name}", daemon=True)
        self._path = path
        self._closed = threading.Event()
        self._heard = threading.Condition()
        #: (time.monotonic() here, beat, newest record, longest write in µs)
        self.beats: list[tuple[float, int, int, int]] = []
        self.words: list[str] = []
        self.start()

    def wait_for_beats(self, count: int = 10, timeout_s: float = _BOOT_TIMEOUT_S) -> None:
        """Wait for that many heartbeats from now on; raise TimeoutError."""
        with self._heard:
            wanted = len(self.beats) + count
            self._wait_for(lambda: len(self.beats) >= wanted, "no heartbeat", timeout_s)

    def wait_for_a_record(self, timeout_s: float = _BOOT_TIMEOUT_S) -> None:
        """Wait until the newest heartbeat tells of a record; raise TimeoutError.

        A guest that has just booted reads its old records first, and says 0 meanwhile.
        """
        with self._heard:
            self._wait_for(lambda: self.beats and self.beats[-1][2], "no record", timeout_s)

    def longest_gap_ms(self, since: float, until: float) -> float:
        """Return the longest silence between two heartbeats in that time (time.monotonic())."""
        times = [beat[0] for beat in list(self.beats) if since <= beat[0] <= until]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0) * 1e3

    def close(self) -> None:
        """Listen no more."""
        self._closed.set()
        self.join()

    def run(self) -> None:
        """Connect again whenever the guest starts anew."""
        while not self._closed.is_set():
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(0.2)
                try:
                    line.connect(str(self._path))
                except OSError:
                    self._closed.wait(0.05)
                    continue
                self._listen(line)

    def _wait_for(self, condition: Callable[[], object], otherwise: str, timeout_s: float) -> None:
        if not self._heard.wait_for(condition, timeout_s):
            raise TimeoutError(f"{otherwise}; the guest said: {self.words[-5:]}")

    def _listen(self, line: socket.socket) -> None:
        rest = b""
        while not self._closed.is_set():
            try:
                data = line.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                return
            now = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            with self._heard:
                for text in lines:
                    self._take(text.decode(errors="replace").strip(), now)
                self._heard.notify_all()

    def _take(self, text: str, now: float) -> None:
        words = text.split()
        if len(words) == 5 and words[0] == "hb":
            beat, _uptime, record, longest = map(int, words[1:])
            self.beats.append((now, beat, record, longest))
        elif text:
            self.words.append(text)


class Guest:
    """One domain, its disk files and its console."""

    def __init__(
        self, libvirtd: Libvirtd, image: Path, directory: Path, wish: GuestWish, accelerator: str
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._libvirtd = libvirtd
        self._image = image
        self._directory = directory
        self._wish = wish
        self._accelerator = accelerator
        self.name = wish.name
        self.uuid = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{directory}/{wish.name}"))
        self.disk = wish.disk or directory / f"{wish.name}.{wish.disk_format}"
        self._console_path = libvirtd.run / f"{wish.name}.console"
        self._console: Console | None = None
        #: Somebody wanted it to run.
        self.has_been_started = False

    @property
    def console(self) -> Console:
        """Its console, listened to from the first use on."""
        if self._console is None:
            self._console = Console(self._console_path)
        return self._console

    def define(self) -> None:
        """Make its disks and define the domain, shut off."""
        if self._wish.disk is None:
            self._make_root_disk()
        for path in self._extra_paths():
            _qemu_img("create", "-q", "-f", "qcow2", str(path), "1G")
        xml = self._directory / f"{self.name}.xml"
        xml.write_text(self._xml())
        self._libvirtd.virsh("define", str(xml))

    def start(self) -> None:
        """Boot it and wait until it writes."""
        self.has_been_started = True
        self._libvirtd.virsh("start", self.name)
        self.console.wait_for_beats()
        self.console.wait_for_a_record()

    def state(self) -> str:
        """Return libvirt's word for its state ("running", "paused", "shut off")."""
        return self._libvirtd.virsh("domstate", self.name).strip()

    def run_id(self) -> str:
        """Return libvirt's id of this run of it: another after each start, `-` while it is off."""
        return self._libvirtd.virsh("domid", self.name).strip()

    def wait_for_agent(self, timeout_s: float = 60.0) -> None:
        """Wait until libvirt has a guest agent's end of the channel."""
        deadline = time.monotonic() + timeout_s
        while "state='connected'" not in self._libvirtd.virsh("dumpxml", self.name):
            if time.monotonic() > deadline:
                raise TimeoutError(f"guest {self.name} has no agent")
            time.sleep(0.1)

    def destroy(self) -> None:
        """Cut its power."""
        self._libvirtd.virsh("destroy", self.name)

    def shut_down(self, timeout_s: float = 60.0) -> None:
        """Press its power button and wait until it is off."""
        self._libvirtd.virsh("shutdown", self.name, "--mode", "acpi")
        deadline = time.monotonic() + timeout_s
        while self.state() != "shut off":
            if time.monotonic() > deadline:
                raise TimeoutError(f"guest {self.name} does not shut down")
            time.sleep(0.1)

    def remove(self) -> None:
        """Leave nothing of it."""
        if self._console is not None:
            self._console.close()
        if self.state() != "shut off":
            self.destroy()
        self._libvirtd.virsh("undefine", self.name, "--checkpoints-metadata")
        for path in [self.disk, *self._extra_paths()]:
            if path != self._wish.disk:
                path.unlink(missing_ok=True)

    def _make_root_disk(self) -> None:
        base = self._image / "disk.qcow2"
        self.disk.unlink(missing_ok=True)
        size = [f"{self._wish.size_gib}G"] if self._wish.size_gib else []
        if self._wish.disk_format == "raw":
            _qemu_img("convert", "-q", "-f", "qcow2", "-O", "raw", str(base), str(self.disk))
            if size:
                _qemu_img("resize", "-q", "-f", "raw", str(self.disk), *size)
            return
        over = ["-b", str(base), "-F", "qcow2", str(self.disk)]
        _qemu_img("create", "-q", "-f", "qcow2", *over, *size)

    def _extra_paths(self) -> list[Path]:
        return [self._directory / f"{self.name}-{n}.qcow2" for n in range(self._wish.extra_disks)]

    def _xml(self) -> str:
        wish = self._wish
        iothread = " iothread='1'" if wish.iothread else ""
        disks = _DISK.format(
            format=wish.disk_format, path=self.disk, target="vda", iothread=iothread
        ) + "".join(
            _DISK.format(format="qcow2", path=path, target=f"vd{letter}", iothread="")
            for letter, path in zip("bcdef", self._extra_paths(), strict=False)
        )
        kernel = _KERNEL.format(image=self._image, options=wish.options)
        return _DOMAIN.format(
            accelerator=self._accelerator,
            name=self.name,
            uuid=self.uuid,
            project=wish.project,
            disk_gib=wish.size_gib or 1,
            image_ref=uuid.uuid5(uuid.NAMESPACE_URL, "stillframe-demo-image"),
            properties="".join(
                f'<stillframe:property name="{name}">{value}</stillframe:property>'
                for name, value in wish.image_properties.items()
            ),
            iothreads="<iothreads>1</iothreads>" if wish.iothread else "",
            boot="<boot dev='hd'/>" if wish.boot_from_disk else kernel,
            disks=disks,
            interface=_INTERFACE.format(network=wish.network, mac=wish.mac) if wish.network else "",
            console=self._console_path,
        )


def build_image(
    directory: Path, size_mib: int = 1024, payload_mib: int = 64, records_mib: int = 32
) -> Path:
    """Build the guest image into `directory`, unless it is there; return the directory.

    Raises RuntimeError with the end of what the build said.
    """
    script = Path(__file__).parents[1] / "guest" / "build"
    command = [str(script), str(directory), str(size_mib), str(payload_mib), str(records_mib)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if built.returncode:
        said = "\n".join(built.stderr.splitlines()[-10:])
        raise RuntimeError(
            f"The guest image was not built. Without package lists, `apt-get update` helps.\n{said}"
        )
    return directory


def choose_accelerator(image: Path, record: Path) -> str:
    """Return "kvm" if it really runs a guest here, else "qemu" (software emulation).

    /dev/kvm may be there and still not work, so a guest is tried, once; the
    answer is kept in `record`.
    """
    if not record.exists():
        record.write_text("kvm" if Path("/dev/kvm").exists() and _boots_with_kvm(image) else "qemu")
    return record.read_text()


def _boots_with_kvm(image: Path) -> bool:
    files = ["-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd")]
    drive = f"file={image / 'disk.qcow2'},format=qcow2,if=virtio,snapshot=on"
    command = ["qemu-system-x86_64", "-accel", "kvm", "-m", "256", "-display", "none"]
    command += [*files, "-append", "console=ttyS0", "-drive", drive, "-serial", "stdio"]
    probe = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    killer = threading.Timer(_KVM_PROBE_S, probe.kill)
    killer.start()
    try:
        return any(b"guest: ready" in line for line in probe.stdout or ())
    finally:
        killer.cancel()
        probe.kill()
        probe.communicate()


def _qemu_img(*arguments: str) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, timeout=300)
