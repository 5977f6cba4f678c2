"""Ports of loopback: a free one, and the wait for somebody to listen."""

import socket
import time

_START_SECONDS = 10


def free_port() -> int:
    """Give a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until_open(port: int) -> None:
    """Wait until somebody listens on a port.

    Args:
        port: Which.

    Raises:
        ConnectionRefusedError: Nobody did for too long.
    """
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
