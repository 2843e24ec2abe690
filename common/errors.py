# SPDX-License-Identifier: Apache-2.0
"""The exceptions that cross module borders, one tree for the project.

    StillframeError                 base: `code`, `retryable`
    ├── ConfigurationError          the operator must change an option
    ├── MalformedMessage            an RPC argument is missing or of the wrong type
    ├── UnsupportedRpcVersion       the other side speaks another major version
    ├── InstanceNotFound            no such instance (here)
    ├── InstanceBusy                another operation holds the instance
    ├── AgentUnavailable            no live agent serves the instance's host
    ├── BrokerUnavailable           RabbitMQ cannot be reached or refuses us
    ├── JobFailed                   a job ended without its result
    │   ├── CaptureFailed           the point in time could not be fixed
    │   ├── NoUsableDisk            the instance has no disk that can be captured
    │   ├── VerifyFailed            what Glance holds is not what was read
    │   ├── JobCancelled            somebody asked for it
    │   ├── JobInterrupted          the agent stopped in the middle
    │   └── DeadlinePassed          it was too late to begin
    └── (leaves of single modules live beside their code: NBD, Glance, disks)

Leaves are named by what a person can do about them. `code` is a stable, public
word (API bodies, logs, image properties); the message is shown to tenants as
it is, so it never names a path, a host or a backend.
"""

from __future__ import annotations


class StillframeError(Exception):
    """Base of every exception of ours.

    `code` is the public, never-changing name of the failure; `retryable` tells
    whether the same call may succeed later without anybody's help.
    """

    code: str = "internal_error"
    retryable: bool = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigurationError(StillframeError):
    """An option has a value that cannot work; the message names it and the remedy."""

    code = "bad_configuration"


class MalformedMessage(StillframeError):
    """A message from the wire lacks a field or carries the wrong type in it."""

    code = "malformed_message"


class UnsupportedRpcVersion(StillframeError):
    """The message's major version is not the one this daemon speaks."""

    code = "unsupported_rpc_version"


class InstanceNotFound(StillframeError):
    """No instance with this id is known (to the API) or present (on the host)."""

    code = "instance_not_found"


class InstanceBusy(StillframeError):
    """The instance's task state (or a job open on its domain) excludes this request."""

    code = "instance_busy"
    retryable = True


class AgentUnavailable(StillframeError):
    """The agent of the instance's host was never seen or has not reported for too long."""

    code = "agent_unavailable"
    retryable = True


class BrokerUnavailable(StillframeError):
    """RabbitMQ cannot be reached, or it refuses the credentials or the operation."""

    code = "broker_unavailable"
    retryable = True


class JobFailed(StillframeError):
    """Base of the reasons that end a job in `error`."""

    code = "job_failed"


class CaptureFailed(JobFailed):
    """libvirt or QEMU did not fix the point in time; the guest runs on as before."""

    code = "capture_failed"


class NoUsableDisk(JobFailed):
    """The instance has no disk that a snapshot can be taken of."""

    code = "no_usable_disk"


class VerifyFailed(JobFailed):
    """Size or sha512 that Glance reports differ from what was read; the image is removed."""

    code = "verify_failed"
    retryable = True


class JobCancelled(JobFailed):
    """The job was cancelled: by request, or because its image or instance was deleted."""

    code = "cancelled"


class JobInterrupted(JobFailed):
    """The agent stopped while the job ran and could not take it up again."""

    code = "interrupted"


class DeadlinePassed(JobFailed):
    """The request reached the agent (or an agent came back) after its deadline."""

    code = "deadline_passed"
