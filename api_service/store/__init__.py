# SPDX-License-Identifier: Apache-2.0
"""The database: the ledger of jobs, and what the agents announced.

`models` holds the tables, `engine` the connection to them, `records` what the
rest of the API sees, `ledger` (jobs and the instances that they hold),
`inventory` (agents and instances) and `lease` the operations. Every change of
state is a compare-and-swap, so any number of API processes may share one
database. Nothing outside this package sees SQL.
"""
