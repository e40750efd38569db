# Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
"""Just enough of the engine socket's protocol (docs/engine_protocol.md) to open thousands of connections."""

import select
import socket
import struct

HEADER = struct.Struct("<IHHHHIQ")
MAGIC, VERSION, HELLO, PING = 0x43525254, 2, 1, 9


def packet(kind, body=b""):
    return HEADER.pack(MAGIC, VERSION, kind, 0, 0, 1, len(body)) + body


def hello(tenant=b"default"):
    return packet(HELLO, struct.pack("<HHIQ64s128s64s", VERSION, VERSION, 0, 0, tenant, b"", b"raw"))


def connect(path, greet=True):
    """A connection that said hello; None when the daemon closed it at once."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(20)
    try:
        connection.connect(path)
        if greet:
            connection.send(hello())
            answer = connection.recv(4096)
            if not answer:
                connection.close()
                return None
            assert HEADER.unpack(answer[:HEADER.size])[4] == 0, "hello was refused"
    except (BrokenPipeError, ConnectionResetError):
        connection.close()
        return None
    return connection


def ping(connection):
    connection.send(packet(PING))
    return bool(connection.recv(4096))


def is_closed(connection):
    readable, _, _ = select.select([connection], [], [], 0)
    return bool(readable) and connection.recv(4096) == b""


def churn(path, parallel, ends, counts):
    """Opens and closes connections, `parallel` at a time, until ends is set. counts: opened, refused."""
    while not ends.is_set():
        connections = []
        for _ in range(parallel):
            connection = connect(path)
            counts[0 if connection else 1] += 1
            if connection:
                connections.append(connection)
        for connection in connections:
            connection.close()
