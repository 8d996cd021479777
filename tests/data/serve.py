"""A folder served on this machine, and a registry that lists it, in the place of a public data set."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Server:
    """What is served, where, and which paths were asked for."""

    folder: Path
    url: str
    requests: list[str] = field(default_factory=list)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a folder until the end of the block."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path.lstrip("/"))
            super().do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as httpd:
        thread = threading.Thread(target=partial(httpd.serve_forever, poll_interval=0.01))
        thread.start()
        try:
            yield Server(folder, f"http://127.0.0.1:{httpd.server_port}", asked)
        finally:
            httpd.shutdown()
            thread.join()


def write_registry(path: Path, served: Path) -> Path:
    """List all files of a folder as the registries of the package do."""
    names = sorted(file.relative_to(served).as_posix() for file in served.rglob("*") if file.is_file())
    lines = [f"{name} sha256:{hashlib.sha256((served / name).read_bytes()).hexdigest()}" for name in names]
    path.write_text("\n".join(["# GitHub owner/name, commit " + 40 * "0", *lines]) + "\n")
    return path
