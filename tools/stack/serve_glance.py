# SPDX-License-Identifier: Apache-2.0
"""Serves Glance's WSGI application with cheroot; run by `glance.Glance` in Glance's own venv."""

import sys

from cheroot import wsgi
from glance.wsgi.api import application

server = wsgi.Server(("127.0.0.1", int(sys.argv[1])), application, numthreads=16)
try:
    server.start()
except KeyboardInterrupt:
    server.stop()
