"""Ends a connection whose other end is gone without a word: its machine, or the network between."""

import asyncio
import socket

# Seconds. What lies between two nodes forgets a connection that is idle for minutes (conntrack).
IDLE_S = 15
INTERVAL_S = 5
NUM_PROBES = 3
UNACKNOWLEDGED_S = 20  # what was sent


def end_when_peer_is_gone(transport: asyncio.BaseTransport) -> None:
    """Have the kernel ask whether the other end is there (tcp(7)); it loses the connection else.

    Without it, events go into a connection that nobody reads for the quarter of an hour in which
    TCP sends them again and again.
    """
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", IDLE_S),
        ("TCP_KEEPINTVL", INTERVAL_S),
        ("TCP_KEEPCNT", NUM_PROBES),
        ("TCP_USER_TIMEOUT", 1000 * UNACKNOWLEDGED_S),
    ):
        if hasattr(socket, name):  # Linux has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
