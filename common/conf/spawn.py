# SPDX-License-Identifier: Apache-2.0
"""[spawn]: instances that are made through the API, and images that are tried out."""

from __future__ import annotations

from oslo_config import cfg

GROUP = "spawn"

OPTS = [
    cfg.StrOpt(
        "instances_directory",
        default="/var/lib/stillframe/instances",
        help="""
Where an agent keeps the disks of the instances that it makes, a directory for each,
named by the instance's id. QEMU's user must be able to reach it. It is the agent's
own: what a deletion removes lies there and nowhere else.
""",
    ),
    cfg.DictOpt(
        "flavors",
        default={
            "m1.tiny": "1/512/1",
            "m1.small": "1/2048/20",
            "m1.medium": "2/4096/40",
            "m1.large": "4/8192/80",
            "m1.xlarge": "8/16384/160",
        },
        help="""
The sizes that a new server may have, NAME:VCPUS/MEMORY/DISK, memory in MiB and disk
in GiB (0: as large as the image). A name is a flavor's id. The API shows them beside
the sizes that the instances of hosts have; of two with one name it shows this one.
""",
    ),
    cfg.StrOpt(
        "virt_type",
        default="auto",
        choices=[
            ("auto", "kvm where it really runs a guest, which is tried once, else qemu"),
            ("kvm", "the host's processors run the guests"),
            ("qemu", "software emulation"),
        ],
        help="How an agent has the instances run that it makes.",
    ),
    cfg.StrOpt(
        "default_network",
        help="""
The libvirt network of a new server that asks for "auto" or (before 2.37) for none in
particular. Unset: it has no network then.
""",
    ),
    cfg.FloatOpt(
        "cpu_allocation_ratio",
        default=16.0,
        min=0.1,
        help="""
How many processors of instances a host takes for each of its own. The API places
new servers by it.
""",
    ),
    cfg.FloatOpt(
        "ram_allocation_ratio",
        default=1.0,
        min=0.1,
        help="How much memory of instances a host takes, for as much of its own.",
    ),
    cfg.IntOpt(
        "reserved_host_memory",
        default=512,
        min=0,
        help="MiB of a host's memory that no new server is given.",
    ),
    cfg.BoolOpt(
        "delete_announced",
        default=False,
        help="""
DELETE also ends instances that were not made through this API: Nova's, or an
operator's. Their domains go, and the disks that lie in `instances_directory`; any other
file of theirs stays. False: such a request is refused with 403.
""",
    ),
    cfg.IntOpt(
        "verify_memory",
        default=512,
        min=64,
        help="""
MiB of memory of the instance that an image is tried out in (`stillframe-manage image
verify`); it has one processor and no network.
""",
    ),
    cfg.IntOpt(
        "verify_timeout",
        default=300,
        min=1,
        help="Seconds that an image has to boot in when it is tried out.",
    ),
    cfg.StrOpt(
        "verify_marker",
        default=r"login: *$|Reached target .*Multi-User",
        help="""
Regular expression: what a guest says on its serial console when it has booted, as
far as a line of it is concerned. A guest agent that answers counts as well.
""",
    ),
]
