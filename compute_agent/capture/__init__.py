# SPDX-License-Identifier: Apache-2.0
"""Fixing the point in time of a disk, one module a method.

`base` says what a capture is, `choose` which method serves a guest, `backup`
and `offline` are the methods, `workspace` the files and sockets that one job
may leave behind and how they are found again after a crash.
"""
