"""Published checkpoints on loopback: a server of files, and published URLs that lead to it."""

import contextlib
import dataclasses
import hashlib
import http.server
import threading
from pathlib import Path
from urllib.parse import urlsplit

from random_checkpoints import random_state_dict, segmenter_shapes, write
from segnext_timm.checkpoints import catalog

DIALECTS = {"mmseg": "mmseg", "authors": "paper", "jseg": "jittor", "paddleseg": "paddle"}


class Files:
    """Files of a server.

    Attributes:
        contents: Bytes by path, with the query.
        cut: Paths whose connection is closed after half of the file.
        requests: Number of downloads by path.
    """

    def __init__(self):
        self.contents, self.cut, self.requests, self.url = {}, set(), {}, ""


class _Handler(http.server.BaseHTTPRequestHandler):
    files: Files

    def log_message(self, *args):
        pass

    def do_GET(self):
        content = self.files.contents.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.files.requests[self.path] = self.files.requests.get(self.path, 0) + 1
            self.wfile.write(content[: len(content) // 2] if self.path in self.files.cut else content)

    do_HEAD = do_GET  # noqa: N815


@contextlib.contextmanager
def serve():
    """Run a server for as long as the context lasts; gives its :class:`Files`."""
    files = Files()
    handler = type("Handler", (_Handler,), {"files": files})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        files.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # it ends within 10 ms
        try:
            yield files
        finally:
            server.shutdown()


def weights_of(name, seed=0):
    """Random weights of a published segmenter, in mmsegmentation's names."""
    cfg = catalog.get_segmenter_cfg(name)
    shapes = segmenter_shapes(cfg.variant.key, cfg.num_classes, channels=cfg.decoder_channels)
    return random_state_dict(shapes, seed)


def file_of(name, state_dict, folder):
    """Contents of a published file with these weights, in its origin's names, container and protocol."""
    path = write(Path(folder) / "published", state_dict, DIALECTS[catalog.get_segmenter_cfg(name).origin])
    content = path.read_bytes()
    path.unlink()
    return content


def offer(files, name, content, setitem, sha256=None):
    """Serve a file at the path of a published URL, and let the name lead to it; returns the path.

    Args:
        files: Of the server.
        name: Published segmenter.
        content: The file.
        setitem: `monkeypatch.setitem`.
        sha256: Known sha256: None for unknown, "right" for that of the content, or digits.
    """
    cfg = catalog._CFGS[name]
    parts = urlsplit(cfg.url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    files.contents[path] = content
    digest = hashlib.sha256(content).hexdigest() if sha256 == "right" else sha256
    setitem(catalog._CFGS, name, dataclasses.replace(cfg, url=files.url + path, sha256=digest, size=None))
    return path
