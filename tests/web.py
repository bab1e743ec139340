"""A local web server for tests of downloads."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from pckd_nb import downloads


@contextmanager
def serving() -> Iterator[ThreadingHTTPServer]:
    """Run a web server on 127.0.0.1 and yield it. A test sets and reads its attributes:

    files: maps a path to its answer: bytes, (headers, bytes), an address to redirect to, or an error code.
    requests: the paths that were requested so far.
    broken: how many of the next answers stop after half of their bytes.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.path)
            content = server.files.get(self.path.partition("?")[0])
            if content is None:
                return self.send_error(404)
            if isinstance(content, int):
                return self.send_error(content)
            if isinstance(content, str):
                self.send_response(302)
                self.send_header("Location", content)
                return self.end_headers()
            headers, content = content if isinstance(content, tuple) else ({}, content)
            self.send_response(200)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if server.broken:
                server.broken -= 1
                content = content[: len(content) // 2]
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with pytest.MonkeyPatch.context() as patch, ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setattr(downloads, "RETRY_PAUSES", (0, 0))
        server.files, server.requests, server.broken = {}, [], 0
        server.address = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield server
        server.shutdown()
