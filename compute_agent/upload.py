# SPDX-License-Identifier: Apache-2.0
"""Sends an image's bytes to Glance and makes sure that Glance holds them.

A broken upload is repeated on the same image id, from byte 0 of the same
frozen export, a bounded number of times: never a tail, never a silent success.
"""

from __future__ import annotations

import logging
import threading

from common.errors import StillframeError, VerifyFailed
from common.glance import ImageRefused, ImageService, ImageServiceUnavailable
from compute_agent.stream.pump import Digest, Pump

LOG = logging.getLogger(__name__)

_BACKOFF_S = (1.0, 3.0, 10.0, 30.0)
_CONFLICT = 409


def upload(
    images: ImageService, image_id: str, pump: Pump, *, retries: int, stopped: threading.Event
) -> Digest:
    """Put `pump`'s bytes into the image; return what was sent.

    Raises ImageNotFound if the image was deleted meanwhile, Stopped if
    `stopped` was set, and the last failure after `retries` repetitions.
    """
    for attempt in range(retries + 1):
        try:
            images.upload(image_id, pump)
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
            stopped.wait(wait_s)
    raise AssertionError("unreachable: the last attempt returns or raises")


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
