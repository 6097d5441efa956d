"""Downloads: whole or not at all."""

import functools
import hashlib
import http.server
import io
import threading

import pytest
import torch

from segnext_timm.checkpoints.formats import read_checkpoint
from segnext_timm.downloads import fetch
from segnext_timm.errors import CheckpointError

read = functools.partial(read_checkpoint, checksums=True)


class _Broken(http.server.BaseHTTPRequestHandler):
    """Cuts the connection in the middle of the file, as often as asked."""

    content = b""
    cuts = 1

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        cut = type(self).cuts > 0
        type(self).cuts -= 1
        self.wfile.write(self.content[: len(self.content) // 2] if cut else self.content)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("hashed", [True, False])
def test_a_connection_cut_halfway_leaves_nothing_and_the_next_call_works(tmp_path, hashed, capfd):
    buffer = io.BytesIO()
    torch.save({"w": torch.rand(50_000)}, buffer)
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest() if hashed else None
    path = tmp_path / "cache" / "x.pth"
    handler = type("Handler", (_Broken,), {"content": buffer.getvalue()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # it ends within 10 ms
        url = f"http://127.0.0.1:{server.server_port}/x.pth"
        with pytest.raises(CheckpointError, match=r"the download failed.*Nothing was kept; try again"):
            fetch(url, path, sha256, read)
        assert list(path.parent.iterdir()) == []
        fetch(url, path, sha256, read)
        server.shutdown()
    assert path.read_bytes() == buffer.getvalue()
    assert "100%" in capfd.readouterr().err  # progress was shown
    fetch(url, path, sha256, read)  # is there: nobody serves it any more


def test_a_server_that_refuses_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"^http://127\.0\.0\.1:9/x\.pth: the download failed"):
        fetch("http://127.0.0.1:9/x.pth", tmp_path / "x.pth", None, read)


def test_damage_inside_a_cached_file_of_unknown_hash_is_found(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"w": torch.rand(1000)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # among the weights, where torch.load does not look
    assert torch.load(path)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pth: damaged .*Remove .*x\.pth to download it again"):
        fetch("http://127.0.0.1:9/x.pth", path, None, read)
