# SPDX-License-Identifier: Apache-2.0
"""What both daemons share: the contract between them and the ways to the outside.

`errors`, `states` and `messages` are plain Python and are the contract itself;
the other modules wrap one library each (oslo.config, oslo.log, oslo.messaging,
kombu, python-glanceclient). Nothing here imports a daemon.
"""
