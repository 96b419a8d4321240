# SPDX-License-Identifier: Apache-2.0
"""Exchanges texts, bytes and a ping with websocket_server.py; prints what it saw."""

import sys

from websockets.sync.client import connect

with connect(sys.argv[1], open_timeout=20) as connection:
    print("path", connection.recv(timeout=20))
    for message in ("hello", b"\x00\xff" * 70_000):
        connection.send(message)
        assert connection.recv(timeout=20) == message
    assert connection.ping().wait(20)
print("closed", connection.protocol.close_code)
