# SPDX-License-Identifier: Apache-2.0
"""The only door to libvirt.

`connection` holds the connection and its event loop, `domain` what is done to
one guest (with `backup_jobs` and `overlays`, on a `handle` that outlives its
connection), `stamps` QEMU's own event times, `errors` what libvirt's errors
mean to us. `description` and `metadata` read domain XML and import no libvirt.
"""
