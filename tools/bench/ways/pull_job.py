# SPDX-License-Identifier: Apache-2.0
"""A backup job in pull mode as one would write it: libvirt makes the scratch itself."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType
from typing import Self

import libvirt

from tools.bench.stage import Stage

_BACKUP = """\
<domainbackup mode='pull'>
  <server transport='unix' socket='{socket}'/>
  <disks><disk name='vda' backup='yes' type='file'><scratch file='{scratch}'/></disk></disks>
</domainbackup>"""
_CHECKPOINT = "<domaincheckpoint><name>{name}</name></domaincheckpoint>"
_CHECKPOINT_NAME = "bench"
_END_TIMEOUT_S = 30.0
_LOOK_S = 0.02


class PullJob:
    """One job on the stage's running guest; ended, and its checkpoint deleted, on leaving."""

    export = "vda"

    def __init__(self, stage: Stage) -> None:
        self.socket = stage.cloud.libvirtd.run / "bench.nbd"
        self._scratch = stage.cloud.directory / "pull-scratch"
        self._domain = stage.domain
        self._has_checkpoint = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(libvirt.libvirtError):  # it did not begin
            self._domain.abortJob()
        deadline = time.monotonic() + _END_TIMEOUT_S
        while self._is_open():
            if time.monotonic() > deadline:
                raise TimeoutError("the backup job does not end")
            time.sleep(_LOOK_S)
        if self._has_checkpoint:
            self._domain.checkpointLookupByName(_CHECKPOINT_NAME).delete()

    def begin(self, *, checkpoint: bool = False) -> None:
        """Begin the job, with a checkpoint in the same call if that is wanted."""
        wanted = _CHECKPOINT.format(name=_CHECKPOINT_NAME) if checkpoint else None
        backup = _BACKUP.format(socket=self.socket, scratch=self._scratch)
        self._domain.backupBegin(backup, wanted)
        self._has_checkpoint = checkpoint

    def _is_open(self) -> bool:
        try:
            self._domain.backupGetXMLDesc()
        except libvirt.libvirtError:
            return False
        return True
