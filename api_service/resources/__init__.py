# SPDX-License-Identifier: Apache-2.0
"""What answers each URL, one module a noun; `app.ROUTES` says which answers what.

A resource reads the request, asks the policy, calls a use case or the store,
and gives what it gets to `views`. It knows no SQL and no RPC.
"""
