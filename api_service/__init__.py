# SPDX-License-Identifier: Apache-2.0
"""The API daemon, `stillframe-api`. Start reading at `app.ROUTES`."""
