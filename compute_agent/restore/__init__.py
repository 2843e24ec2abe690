# SPDX-License-Identifier: Apache-2.0
"""An image of Glance becomes a disk of this host: fetched, proven harmless, then built.

`restorer` is the door. Whatever comes from Glance is hostile until it is proven.
"""
