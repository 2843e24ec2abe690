# SPDX-License-Identifier: Apache-2.0
"""The way Nova does it: extract to a file with qemu-img, then upload the file.

`live` is what its libvirt driver does on a running guest: mirror the overlay
into a second one, cut the mirror, flatten that into a file. `cold` reads the
disk itself while the guest is paused. Both then upload with glanceclient, as
Nova does; `cold_lean` puts the file as the bare PUT does, to tell the method from the
uploader. Nothing is counted of Nova itself: no API, no messages, no database.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import libvirt

from tools.bench import client
from tools.bench.figures import Sample
from tools.bench.measure import Helpers
from tools.bench.stage import Stage
from tools.stack.cloud import Cloud

_Uploader = Callable[[Cloud, str, Path], None]

_DISK = "vda"
#: As often as Nova looks whether the mirror is complete.
_LOOK_S = 0.5
_MIRROR_TIMEOUT_S = 600.0
_MIRROR = "<disk type='file'><source file='{path}'/><driver type='qcow2'/></disk>"
#: As Nova calls it, where direct I/O works: the file is written past the page cache.
_CONVERT = ("qemu-img", "convert", "-t", "none", "-f", "qcow2", "-O", "qcow2")


def live(stage: Stage) -> Sample:
    """Mirror, flatten, upload; the guest is not stopped."""
    delta, flat = stage.temp / "delta", stage.temp / "flat"
    helpers = Helpers()
    with stage.meter(helpers) as meter:
        over = ["-b", str(stage.base_disk), "-F", "qcow2", str(delta), f"{stage.case.size_gib}G"]
        helpers.run("qemu-img", "create", "-q", "-f", "qcow2", *over)
        _mirror(stage.domain, delta)
        helpers.run(*_CONVERT, str(delta), str(flat))
        delta.unlink()
        image_id = _upload(stage, flat, client.upload_as_nova)
    return meter.sample(**_given_back(stage, image_id, flat))


def cold(stage: Stage) -> Sample:
    """Pause, flatten, resume, upload."""
    return _cold(stage, client.upload_as_nova)


def cold_lean(stage: Stage) -> Sample:
    """Pause, flatten, resume, and the leanest upload that there is."""
    return _cold(stage, client.put)


def _cold(stage: Stage, upload: _Uploader) -> Sample:
    flat = stage.temp / "flat"
    helpers = Helpers()
    with stage.meter(helpers) as meter:
        stage.domain.suspend()
        try:
            helpers.run(*_CONVERT, "-U", str(stage.guest.disk), str(flat))
        finally:
            stage.domain.resume()
        image_id = _upload(stage, flat, upload)
    return meter.sample(**_given_back(stage, image_id, flat))


def _mirror(domain: libvirt.virDomain, delta: Path) -> None:
    """Copy the overlay into `delta` until both are the same, then let go of it."""
    domain.blockCopy(
        _DISK,
        _MIRROR.format(path=delta),
        {},
        libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW
        | libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
        | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB,
    )
    deadline = time.monotonic() + _MIRROR_TIMEOUT_S
    while "ready='yes'" not in domain.XMLDesc():
        if time.monotonic() > deadline:
            raise TimeoutError("the mirror does not become ready")
        time.sleep(_LOOK_S)
    domain.blockJobAbort(_DISK)


def _upload(stage: Stage, flat: Path, upload: _Uploader) -> str:
    image_id = client.create_record(stage.cloud)
    upload(stage.cloud, image_id, flat)
    return image_id


def _given_back(stage: Stage, image_id: str, flat: Path) -> dict[str, int]:
    """Remove what the run made; return how large the image was."""
    size_bytes = flat.stat().st_size
    client.delete(stage.cloud, image_id)
    flat.unlink()
    return {"image_bytes": size_bytes}
