# SPDX-License-Identifier: Apache-2.0
"""[capture]: how the point in time is fixed and read."""

from __future__ import annotations

from oslo_config import cfg

GROUP = "capture"

OPTS = [
    cfg.StrOpt(
        "method",
        default="auto",
        choices=[
            ("auto", "chosen for each instance from what its host and domain can do"),
            ("backup", "libvirt backup job in pull mode; the guest must run"),
            ("offline", "read-only NBD export of the disk; the guest must be shut off"),
        ],
        help="Capture method; anything but auto is for tests and trouble.",
    ),
    cfg.StrOpt(
        "pause",
        default="always",
        choices=[
            ("always", "stop the guest's vCPUs around the capture, for milliseconds"),
            ("never", "capture without a stop; the instant is as atomic"),
        ],
        mutable=True,
        help="Whether a running guest is paused while its point in time is fixed.",
    ),
    cfg.FloatOpt(
        "pause_budget",
        default=5.0,
        min=0.5,
        help="Seconds that a guest may be paused at the most, whatever happens.",
    ),
    cfg.StrOpt(
        "scratch_directory",
        default="/var/lib/stillframe/scratch",
        help="""
Directory for what a capture needs beside the disk: blocks that the guest
overwrites while they are waiting to be read. QEMU's user must be able to reach
it. Keep the path short: QEMU reads it byte by byte inside the pause.
""",
    ),
    cfg.StrOpt(
        "socket_directory",
        default="/run/stillframe",
        help="""
Directory for the NBD unix sockets of exports; QEMU's user must be able to create
sockets in it. A socket's whole path may have 107 bytes, so keep it short.
""",
    ),
    cfg.IntOpt(
        "scratch_reserve_percent",
        default=10,
        min=0,
        max=100,
        help="""
A capture is refused when the scratch directory's file system has less free
space than this share of the disk's size: the guest must never fail for want of
space because of a backup.
""",
    ),
    cfg.IntOpt(
        "bandwidth_limit",
        default=200,
        min=0,
        mutable=True,
        help="MB/s that all jobs of a host read from its disks together; 0 is no limit.",
    ),
]
