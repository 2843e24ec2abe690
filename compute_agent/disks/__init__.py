# SPDX-License-Identifier: Apache-2.0
"""Disks as files and exports: reading over NBD, and the qemu tools as processes.

`nbd` reads an export, `qemu_nbd` serves one from a file, `qemu_img` makes and
describes image files. Nothing here knows of instances, libvirt or Glance, and
nothing here ever guesses a format.
"""
