# SPDX-License-Identifier: Apache-2.0
"""Serves `MODULE:application` with cheroot; run in the venv of the service that it belongs to.

serve_wsgi.py MODULE PORT [CERTIFICATE KEY]
"""

import importlib
import sys

from cheroot import wsgi
from cheroot.ssl.builtin import BuiltinSSLAdapter

module, port, *tls = sys.argv[1:]
del sys.argv[1:]  # the module reads them, too, and knows none of ours
application = importlib.import_module(module).application
server = wsgi.Server(("127.0.0.1", int(port)), application, numthreads=16)
if tls:
    server.ssl_adapter = BuiltinSSLAdapter(*tls)
try:
    server.start()
except KeyboardInterrupt:
    server.stop()
