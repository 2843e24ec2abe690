# SPDX-License-Identifier: Apache-2.0
"""The single pass: frozen export → image format → throttle → hash → whoever sends it.

`extents` says what there is to read, `zeros` what of it need not be sent;
`qcow2`, `compressed` and `raw` lay it out with an exact length before the first
byte. `throttle` bounds the rate of all jobs of a host, `ahead` and `pump` move
the bytes, `progress` counts them. Nothing here knows libvirt or Glance.
"""
