"""Ports for servers that listen on loopback."""

import secrets
import socket
import threading
from pathlib import Path

from dr_pipelines.errors import ProcessError

__all__ = ["free_port", "is_free"]

_LOWEST = 10_000
_HIGHEST = 32_000
_given: set[int] = set()
_lock = threading.Lock()


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens, another one at every call within this process.

    It lies below the range the kernel takes for outgoing connections: there, a passing client could take the port of a
    server between its stop and its next start. It is drawn at random, so that processes which ask at the same moment
    do not get the same one.
    """
    highest = min(_HIGHEST, _first_ephemeral() - 1)
    with _lock:
        for _ in range(1000):
            port = _LOWEST + secrets.randbelow(max(highest - _LOWEST, 1))
            if port not in _given and is_free(port):
                _given.add(port)
                return port
    raise ProcessError(f"no free port found between {_LOWEST} and {highest} of 127.0.0.1")


def _first_ephemeral() -> int:
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    first = int(text.split()[0])
    # A machine that gives nearly every port to clients leaves no room below: then share the range with them.
    return first if first >= _LOWEST + 1000 else _HIGHEST + 1
