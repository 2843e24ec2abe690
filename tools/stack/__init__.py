# SPDX-License-Identifier: Apache-2.0
"""A private cloud of real parts on one machine, for the demo, the tests and the benchmarks.

RabbitMQ, Glance, libvirt with a booted guest, and Stillframe's two daemons: each
with directories, ports and sockets of its own, on the loopback, started and
stopped by process id. Nothing that runs on the machine already is touched.
"""
