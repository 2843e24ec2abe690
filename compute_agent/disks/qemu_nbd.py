# SPDX-License-Identifier: Apache-2.0
"""A read-only qemu-nbd of our own as a process that cannot outlive us.

Called by `capture` for disks that no running guest writes to (and, with
`force_share`, for those one has open). The format is always named, for the
image and for each one below it; the kernel ends the server when our thread or
process dies.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from common import qemu_img
from common.errors import JobFailed
from compute_agent.disks import buffers
from compute_agent.disks.nbd import NbdClient, NbdConnectionLost

LOG = logging.getLogger(__name__)

_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 5.0
_HANDSHAKE_TIMEOUT_S = 2.0
_LOOK_S = 0.01


class QemuNbdError(JobFailed):
    """qemu-nbd did not start; the log has its words."""

    code = "export_unavailable"


class QemuNbd:
    """Serves one image at `socket_path` as the export `export_name`, read-only.

    `image_format` comes from our own records or the domain's definition, never
    from the file. Without `force_share` QEMU's image lock keeps the guest from
    being started meanwhile, and an image in use is refused. `bitmaps` are
    persistent dirty bitmaps to offer, `shared` how many clients may connect.
    Reading goes past the page cache where every file of the chain lets it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        image_format: str,
        socket_path: str | os.PathLike[str],
        export_name: str = "",
        force_share: bool = False,
        bitmaps: Sequence[str] = (),
        shared: int = 4,
    ) -> None:
        self._path = os.fspath(path)
        self._format = image_format
        self._socket_path = Path(socket_path)
        self._export_name = export_name
        self._force_share = force_share
        self._past_the_cache = False
        self._bitmaps = tuple(bitmaps)
        self._shared = shared
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def socket_path(self) -> Path:
        """Where clients connect."""
        return self._socket_path

    def start(self, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Start serving; return when clients may connect.

        Raises QemuNbdError if the image is in use, or the server does not come
        up in time, and QemuImgError if a format in its chain is not recorded.
        """
        chain = qemu_img.backing_chain(self._path, self._format)
        self._past_the_cache = all(_takes_direct_io(image.path) for image in chain)
        self._socket_path.unlink(missing_ok=True)
        self._process = process = subprocess.Popen(
            self.command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | buffers.ENVIRONMENT,
        )
        try:
            self._wait_until_it_serves(process, time.monotonic() + timeout_s)
        except BaseException:
            self.stop()
            raise
        # Nobody waits for its words any more, but a full pipe would stop it.
        threading.Thread(
            target=_log_words, args=(process,), name="qemu-nbd-words", daemon=True
        ).start()

    def stop(self) -> None:
        """End the server and remove its socket; harmless if it has ended."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            LOG.warning("qemu-nbd %d did not end when asked; killing it", process.pid)
            process.kill()
            process.wait(_STOP_TIMEOUT_S)
        # Only now: one that does not end is asked again the next time.
        self._process = None
        self._socket_path.unlink(missing_ok=True)

    def command(self) -> list[str]:
        """Return the command line."""
        options = [
            "--read-only",
            f"--socket={self._socket_path}",
            f"--export-name={self._export_name}",
            "--persistent",
            f"--shared={self._shared}",
            *(f"--bitmap={name}" for name in self._bitmaps),
        ]
        return ["setpriv", "--pdeathsig", "TERM", "qemu-nbd", *options, *self._image()]

    def _image(self) -> list[str]:
        cache = ["--cache=none", "--aio=native"] if self._past_the_cache else []
        if not self._force_share:
            return [*cache, f"--format={self._format}", self._path]
        path = self._path.replace(",", ",,")
        options = f"driver={self._format},read-only=on,force-share=on"
        return [*cache, "--image-opts", f"{options},file.driver=file,file.filename={path}"]

    def _wait_until_it_serves(self, process: subprocess.Popen[str], deadline: float) -> None:
        while not self._serves():
            if process.poll() is not None:
                _log_words(process)
                raise QemuNbdError("the disk could not be opened for reading; is it in use?")
            if time.monotonic() > deadline:
                LOG.error("qemu-nbd of %s did not open its socket in time", self._path)
                raise QemuNbdError("the disk could not be opened for reading in time")
            time.sleep(_LOOK_S)

    def _serves(self) -> bool:
        """Tell whether the export is offered: it listens before it has opened the image."""
        try:
            NbdClient(
                self._socket_path, self._export_name, contexts=(), timeout_s=_HANDSHAKE_TIMEOUT_S
            ).close()
        except NbdConnectionLost:
            return False
        return True


def _takes_direct_io(path: str) -> bool:
    """Tell whether the file can be read past the page cache (not every file system can)."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def _log_words(process: subprocess.Popen[str]) -> None:
    """Pass on whatever the server says on stderr, until it ends."""
    if process.stderr is not None:
        with process.stderr as words:
            for line in words:
                LOG.warning("qemu-nbd %d: %s", process.pid, line.rstrip())
