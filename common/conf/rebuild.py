# SPDX-License-Identifier: Apache-2.0
"""[rebuild]: what counts as seeing an instance run from its new disk."""

from __future__ import annotations

from oslo_config import cfg

GROUP = "rebuild"

OPTS = [
    cfg.StrOpt(
        "proof",
        default="running",
        choices=[
            ("running", "the guest has run for `running_time`; it may still hang at its boot"),
            ("agent", "its guest agent answers; an image without one cannot be rebuilt to"),
            ("port", "`proof_port` is open at an address that libvirt knows of it"),
        ],
        mutable=True,
        help="""
What counts as proof that a rebuilt instance runs from its new disk. Until then its
old disk is kept, and put back where the proof does not come.
""",
    ),
    cfg.FloatOpt(
        "running_time",
        default=3.0,
        min=0.0,
        mutable=True,
        help="Seconds that a guest must have run, for `proof = running`; each rebuild takes them.",
    ),
    cfg.FloatOpt(
        "proof_timeout",
        default=120.0,
        min=1.0,
        mutable=True,
        help="""
Seconds that a guest agent, or a port, may take to answer from the guest's start on;
then the old disk is put back. More than the slowest boot takes.
""",
    ),
    cfg.PortOpt(
        "proof_port",
        default=22,
        mutable=True,
        help="TCP port that must be open, for `proof = port`.",
    ),
]
