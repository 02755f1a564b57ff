"""Servers on this machine that tests fetch shards from: moto's S3, and a plain HTTP server that fails on request."""

from __future__ import annotations

import functools
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}


class FaultyServer(ThreadingHTTPServer):
    """Serves a folder.

    faults: path → what to do with its next requests: a status, "cut", "rot", "slow", "unsized", "page".

    requests: how often each path was asked for. authorization: the header of the last request.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.faults: dict[str, list[int | str]] = {}
        self.requests = Counter[str]()
        self.authorization: str | None = None
        self.folder = folder

    @property
    def address(self) -> str:
        """The address of the folder."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    """Answers GET and HEAD, except for a fault that its server has for the path."""

    server: FaultyServer

    def do_GET(self) -> None:
        """Answer a request."""
        name = self.path.lstrip("/").partition("?")[0]
        self.server.requests[name] += 1
        self.server.authorization = self.headers.get("Authorization")
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault:
            self._send_damaged(Path(self.translate_path(self.path)).read_bytes(), fault)
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        """Answer without a size where the next GET will have none, too."""
        if "unsized" in self.server.faults.get(self.path.lstrip("/"), []):
            self.send_response(200)
            self.end_headers()
        else:
            super().do_HEAD()

    def _send_damaged(self, content: bytes, fault: str) -> None:
        if fault == "page":  # as a network that wants one to log in first
            content = b"<html>Please log in</html>"
        self.send_response(200)
        if fault != "unsized":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        if fault == "rot":
            content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        self.wfile.write(content[:half])
        if fault == "slow":
            time.sleep(3)
        if fault != "cut":
            self.wfile.write(content[half:])
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def serve_http(folder: Path) -> Iterator[FaultyServer]:
    """Serve a folder over HTTP."""
    with FaultyServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def serve_s3() -> Iterator[str]:
    """Run moto's S3 server in a process of its own, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        assert process.poll() is None, "moto's server ended"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
