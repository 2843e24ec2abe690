# SPDX-License-Identifier: Apache-2.0
"""Serves `MODULE:application` with cheroot; run in the venv of the service that it belongs to.

serve_wsgi.py MODULE PORT [CERTIFICATE KEY]
"""

import importlib
import sys

from cheroot import wsgi
from cheroot.ssl.builtin import BuiltinSSLAdapter
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine


@event.listens_for(Engine, "begin")
def _write_from_the_start(connection: Connection) -> None:
    """Begin each transaction on SQLite as one that writes, before oslo.db begins it as a reader.

    Two that read first and then want to write make SQLite fail one of them at once, however long
    it may wait for locks ("database is locked"): a burst of uploads loses some. Services with a
    database server, which is what clouds have, know no such thing.
    """
    if connection.dialect.name == "sqlite" and "in_transaction" not in connection.info:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.info["in_transaction"] = True


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
