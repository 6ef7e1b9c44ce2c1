"""A way to a real S3 service on which requests are refused, broken off and held up, as the test says."""

import http.client
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Refusal:
    """An answer instead of the service's, as S3 words it."""

    status: int
    code: str
    said: str = ""


@dataclass(frozen=True)
class Reset:
    """The connection is reset after so many bytes: of the request's body, or of the answer's where it has none."""

    after: int


@dataclass(frozen=True)
class Held:
    """The request goes on only after so many seconds."""

    seconds: float


Fault = Refusal | Reset | Held
Rule = Callable[[str, str], Fault | None]
"""What becomes of a request with this method and this path; None: it goes its way."""


@dataclass
class Way:
    """What stands between a client and the service; `rule` may be exchanged at any time."""

    endpoint: str
    rule: Rule = lambda method, path: None
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request."""
    met: list[Fault] = field(default_factory=list)
    """The faults that requests have met."""
    closing: threading.Event = field(default_factory=threading.Event)

    def always(self, fault: Fault, method: str = "", pattern: str = "") -> None:
        """From now on each request that fits meets the fault."""
        self.rule = lambda m, path: fault if m.startswith(method) and re.search(pattern, path) else None

    def first(self, times: int, fault: Fault, method: str = "", pattern: str = "") -> None:
        """The next so many requests that fit meet the fault."""
        left = iter(range(times))
        self.always(fault, method, pattern)
        fits = self.rule
        self.rule = lambda m, path: fault if fits(m, path) and next(left, None) is not None else None

    def sometimes(self, share: float, faults: tuple[Fault, ...], seed: int) -> None:
        """Each request meets one of the faults with this probability."""
        draw = random.Random(seed)
        self.rule = lambda method, path: draw.choice(faults) if draw.random() < share else None

    def clear(self) -> None:
        """Nothing happens any more."""
        self.rule = lambda method, path: None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    way: Way
    target: tuple[str, int]

    def do_any(self) -> None:
        way = self.way
        way.seen.append((self.command, self.path))
        fault = way.rule(self.command, self.path)
        if fault is not None:
            way.met.append(fault)
        size = int(self.headers.get("Content-Length") or 0)
        if isinstance(fault, Reset) and size:
            self.rfile.read(min(fault.after, size))
            self._reset()
            return
        body = self.rfile.read(size)
        if isinstance(fault, Refusal):
            self._refuse(fault)
            return
        if isinstance(fault, Held):
            way.closing.wait(fault.seconds)
        status, headers, content = self._ask(body)
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(content)))
        self.send_header("Content-Length", length)
        self.end_headers()
        if isinstance(fault, Reset):
            self.wfile.write(content[: fault.after])
            self._reset()
            return
        self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do_any

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.target, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _refuse(self, refusal: Refusal) -> None:
        said = refusal.said or f"{refusal.code}, says the way"
        text = f'<?xml version="1.0"?><Error><Code>{refusal.code}</Code><Message>{said}</Message></Error>'
        content = b"" if self.command == "HEAD" else text.encode()
        self.send_response_only(refusal.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _reset(self) -> None:
        # With nothing to linger for the kernel sends a reset instead of an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""

    def shutdown_request(self, request: object) -> None:
        # Not an orderly end first, which would make a reset none.
        self.close_request(request)  # type: ignore[arg-type]


@contextmanager
def way_to(endpoint: str) -> Iterator[Way]:
    """A way to the service at `endpoint`."""
    place = urlsplit(endpoint)
    handler = type("Handler", (_Handler,), {"target": (place.hostname or "", place.port or 0)})
    server = _Server(("127.0.0.1", 0), handler)
    way = Way(f"http://127.0.0.1:{server.server_address[1]}")
    handler.way = way  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield way
    finally:
        way.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
