# SPDX-License-Identifier: Apache-2.0
"""[libvirt]: the hypervisor; named as in Nova where Nova has it."""

from __future__ import annotations

from oslo_config import cfg

GROUP = "libvirt"

OPTS = [
    cfg.StrOpt(
        "connection_uri", default="qemu:///system", help="URI of the libvirt daemon to use."
    ),
    cfg.StrOpt(
        "snapshot_image_format",
        default="qcow2",
        choices=["qcow2", "raw"],
        mutable=True,
        help="Format of the images that snapshots are uploaded in.",
    ),
    cfg.BoolOpt(
        "snapshot_compression",
        default=False,
        mutable=True,
        help="""
Compress qcow2 images. The disk is then read twice, because an image's tables,
which come first, hold the compressed lengths; there is still no temporary copy.
""",
    ),
    cfg.StrOpt(
        "snapshot_compression_type",
        default="zlib",
        choices=[
            ("zlib", "every QEMU reads it"),
            ("zstd", "a third of the processor time; for QEMU 5.1 and later"),
        ],
        mutable=True,
        help="How images are compressed, with `snapshot_compression`.",
    ),
    cfg.FloatOpt(
        "keepalive_interval",
        default=5.0,
        min=1.0,
        help="Seconds between two probes of a silent connection to libvirt.",
    ),
    cfg.IntOpt(
        "keepalive_count",
        default=5,
        min=1,
        help="Probes without an answer after which the connection is given up and reopened.",
    ),
]
