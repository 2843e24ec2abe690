# SPDX-License-Identifier: Apache-2.0
"""Sends an image's bytes to Glance and makes sure that Glance holds them.

A broken upload is repeated on the same image id, from byte 0 of the same
frozen export, a bounded number of times: never a tail, never a silent success.
Called by `publication`; it calls `common.glance` and the pump it is given.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from common import context
from common.errors import StillframeError, VerifyFailed
from common.glance import (
    Image,
    ImageNotFound,
    ImageRefused,
    ImageService,
    ImageServiceUnavailable,
)
from compute_agent.stream.pump import Digest, Pump, Stopped

LOG = logging.getLogger(__name__)

R = TypeVar("R")

_BACKOFF_S = (1.0, 3.0, 10.0, 30.0)
#: How long Glance may take to notice that an upload broke off.
_SETTLE_TIMEOUT_S = 30.0
_SETTLE_LOOK_S = 1.0
_LOOK_S = 0.2
#: How long the call of a stopped job may take to end by itself.
_GIVE_UP_S = 0.5
_CONFLICT = 409
_GONE = frozenset({"deleted", "pending_delete", "killed"})


def upload(
    images: ImageService, image_id: str, pump: Pump, *, retries: int, stopped: threading.Event
) -> Digest:
    """Put `pump`'s bytes into the image; return what was sent.

    Raises ImageNotFound if the image was deleted meanwhile, Stopped if
    `stopped` was set, and the last failure after `retries` repetitions.
    """
    for attempt in range(retries + 1):
        try:
            if attempt and _has_arrived(images, image_id, pump, stopped):
                return pump.digest
            unless_stopped(lambda: images.upload(image_id, pump), stopped)
            return pump.digest
        except (ImageServiceUnavailable, ImageRefused) as error:
            if attempt == retries or not _worth_repeating(error):
                raise
            wait_s = _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
            LOG.warning(
                "Upload of image %s broke off (%s); attempt %d of %d, from byte 0, in %.0f s",
                image_id,
                error,
                attempt + 2,
                retries + 1,
                wait_s,
            )
        finally:
            pump.end()
        _pause(wait_s, stopped)
    raise AssertionError("unreachable: the last attempt returns or raises")


def unless_stopped(call: Callable[[], R], stopped: threading.Event) -> R:
    """Return what a call of Glance returns; once `stopped` is set, raise Stopped rather than wait.

    It is called in a thread of its own: Glance may stand still, and meanwhile the guest
    may wait for the capture to end. The thread of a call that is given up ends by the
    call's timeouts, or with the bytes that it waits for.
    """
    answer = _asked(call)
    while not wait([answer], timeout=_LOOK_S).done:
        if stopped.is_set() and not wait([answer], timeout=_GIVE_UP_S).done:
            raise Stopped("the snapshot was told to stop")
    return answer.result()


def in_time(call: Callable[[], R], timeout_s: float) -> R:
    """Return what a call of Glance returns; raise ImageServiceUnavailable if that takes longer."""
    answer = _asked(call)
    if not wait([answer], timeout=timeout_s).done:
        raise ImageServiceUnavailable(f"the image service did not answer within {timeout_s:.0f} s")
    return answer.result()


def _asked(call: Callable[[], R]) -> Future[R]:
    """Have a thread of its own make a call, in the caller's context; return its answer to be."""
    answer: Future[R] = Future()
    caller = context.current()

    def ask() -> None:
        try:
            with context.bound(caller) if caller else contextlib.nullcontext():
                answer.set_result(call())
        except BaseException as error:  # it belongs to the one who waits, whatever it is
            answer.set_exception(error)

    threading.Thread(target=ask, name="glance", daemon=True).start()
    return answer


def verify(images: ImageService, image_id: str, digest: Digest) -> None:
    """Raise VerifyFailed unless Glance reports the size and the sha512 that were sent."""
    image = images.show(image_id)
    if image.status != "active":
        raise VerifyFailed(f"the image is {image.status} after its upload, not active")
    if image.size_bytes != digest.size_bytes:
        raise VerifyFailed(
            f"the image service holds {image.size_bytes} bytes, {digest.size_bytes} were sent"
        )
    if image.hash_algorithm != "sha512":
        # A Glance that hashes otherwise cannot be compared with; the size is all there is.
        LOG.warning(
            "Glance hashes with %s, not sha512: only the size is verified", image.hash_algorithm
        )
    elif image.hash_value != digest.sha512:
        raise VerifyFailed("the image service holds other bytes than were sent (sha512 differs)")


def _worth_repeating(error: StillframeError) -> bool:
    """Glance holds a broken upload's image for a moment and answers 409 meanwhile."""
    return not isinstance(error, ImageRefused) or error.status == _CONFLICT


def settled(images: ImageService, image_id: str, stopped: threading.Event) -> Image:
    """Return the record of an image whose upload broke off, once Glance has noticed that.

    It is `queued` then, or `active`: every byte had arrived. Raises
    ImageNotFound if the image is gone, and ImageRefused if Glance does not notice.
    """
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    while True:
        image = images.show(image_id)
        if image.status in _GONE:
            raise ImageNotFound("the image was deleted meanwhile")
        if image.status in ("queued", "active"):
            return image
        if time.monotonic() >= deadline:
            # A Glance that died while it received leaves the image so for ever,
            # and takes no more data for it.
            raise ImageRefused(
                f"the image service lost the upload and holds the image in {image.status}; "
                "ask for the snapshot again"
            )
        _pause(_SETTLE_LOOK_S, stopped)


def _has_arrived(images: ImageService, image_id: str, pump: Pump, stopped: threading.Event) -> bool:
    """Look where a broken upload has left the image.

    True if every byte had arrived and only the answer was lost. Raises what
    `settled` raises, and ImageRefused if the image holds other data.
    """
    image = unless_stopped(lambda: settled(images, image_id, stopped), stopped)
    if image.status == "queued":
        return False
    if pump.is_complete and image.size_bytes == pump.digest.size_bytes:
        LOG.info("Image %s had arrived whole; only the answer was lost", image_id)
        return True
    raise ImageRefused("the image got its data from somebody else")


def _pause(seconds: float, stopped: threading.Event) -> None:
    if stopped.wait(seconds):
        raise Stopped("the snapshot was told to stop")
