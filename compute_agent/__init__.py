# SPDX-License-Identifier: Apache-2.0
"""The compute agent, `stillframe-compute`: one on each hypervisor.

Start reading at `snapshot.STEPS`; docs/flow.md follows one request through.
"""
