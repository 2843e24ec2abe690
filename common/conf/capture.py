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
            ("overlay", "external overlay, merged back afterwards; the guest must run"),
            ("offline", "read-only NBD export of the disk; the guest must be shut off"),
        ],
        mutable=True,
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
    cfg.StrOpt(
        "freeze",
        default="auto",
        choices=[
            ("auto", "as the instance's image says: hw_qemu_guest_agent, os_require_quiesce"),
            ("never", "snapshots are as after a power failure"),
            ("required", "a snapshot whose file systems cannot be frozen fails"),
        ],
        mutable=True,
        help="Whether the guest agent freezes the file systems around the capture.",
    ),
    cfg.FloatOpt(
        "freeze_timeout",
        default=5.0,
        min=1.0,
        mutable=True,
        help="Seconds that a guest agent may take to freeze, or to thaw, the file systems.",
    ),
    cfg.StrOpt(
        "disks",
        default="root",
        choices=[
            ("root", "the disk that the guest boots from, as in Nova"),
            ("all", "every disk at one instant, one image each"),
        ],
        mutable=True,
        help="Which disks a snapshot is of, unless its request says.",
    ),
    cfg.BoolOpt(
        "checkpoints",
        default=False,
        mutable=True,
        help="""
Keep a checkpoint (a dirty bitmap in the disk's qcow2 file) with each snapshot of
a running instance, so that a later one can upload only what has changed.
Increments are still only made for requests that ask for them.
""",
    ),
    cfg.IntOpt(
        "max_increments",
        default=7,
        min=1,
        # `flatten.MAX_CHAIN` with the full one.
        max=199,
        mutable=True,
        help="Increments that may lie on top of one full image; the next snapshot is full.",
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
space because of a backup. With method overlay the disk's own file system must
have twice that: for the overlay, and for the disk when it is merged. What a
guest overwrites beyond its share may take only what no other open capture was
promised: else its snapshot ends, not another's.
""",
    ),
    cfg.IntOpt(
        "scratch_min_free",
        default=256,
        min=0,
        mutable=True,
        help="""
MiB that must stay free where a guest's overwritten (or, with method overlay,
new) blocks are kept during a snapshot; with less, the snapshot is ended and
undone before the guest notices.
""",
    ),
    cfg.IntOpt(
        "bandwidth_limit",
        default=200,
        min=0,
        mutable=True,
        help="""
MB/s that all jobs of a host read together, from its disks and from the images that
disks are made of; 0 is no limit.
""",
    ),
    cfg.StrOpt(
        "bandwidth_mode",
        default="fixed",
        choices=[
            ("fixed", "read as fast as bandwidth_limit allows"),
            ("adaptive", "read slower while the guest's own reads and writes suffer"),
        ],
        mutable=True,
        help="What decides how fast a disk is read.",
    ),
    cfg.FloatOpt(
        "latency_factor",
        default=4.0,
        min=1.0,
        mutable=True,
        help="""
With `bandwidth_mode = adaptive`: a guest suffers when its reads and writes take so
many times as long as they did before the snapshot.
""",
    ),
]
