# SPDX-License-Identifier: Apache-2.0
"""Why an image does not become a disk; `common.flatten` has UnsafeImage and NoRoom."""

from __future__ import annotations

from common.errors import JobFailed


class UnusableImage(JobFailed):
    """An image's record says that no disk can be made of it: its state, its format."""

    code = "unusable_image"


class ImageTooLarge(JobFailed):
    """An image's disk, or what its record asks for, is larger than the disk that it is for."""

    code = "image_too_large"
