# SPDX-License-Identifier: Apache-2.0
"""[restore]: disks made of images; what an image from outside may be and may take."""

from __future__ import annotations

from oslo_config import cfg, types

GROUP = "restore"

OPTS = [
    cfg.ListOpt(
        "formats",
        default=["qcow2", "raw", "vmdk", "vdi", "vhd", "vhdx"],
        item_type=types.String(choices=["qcow2", "raw", "vmdk", "vdi", "vhd", "vhdx"]),
        help="""
Glance's disk formats that a disk may be made of. Each image's content must be what
its record says, and safe, whatever stands here; leave out what your tenants do not
need, for qemu-img has to read it.
""",
    ),
    cfg.IntOpt(
        "max_size",
        default=16384,
        min=1,
        help="""
GiB that the disk in an image may be large. It is the instance's disk that decides,
which is smaller; this is the bound for instances whose disk is not.
""",
    ),
    cfg.IntOpt(
        "min_free",
        default=1024,
        min=0,
        help="""
MiB that stay free where images are fetched to and disks are made: other guests'
disks grow there. A restore that would need them is refused or ended.
""",
    ),
    cfg.IntOpt(
        "qemu_img_memory",
        default=1024,
        min=256,
        help="""
MiB of memory (address space) that qemu-img may take for an image from outside, as
Nova's images_address_space_limit; with less than it needs, sound images are refused.
""",
    ),
    cfg.IntOpt(
        "qemu_img_timeout",
        default=3600,
        min=10,
        help="""
Seconds, of the clock and of the processor, that qemu-img may take to check or to
convert an image from outside, as Nova's images_cpu_time_limit; an image that takes
longer is refused.
""",
    ),
]
