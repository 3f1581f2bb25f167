"""A download is whole, bounded, and what it says it is; else there is no file."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from aligndetr.utils.downloads import download

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT under any name, but for a few names with a trick."""

    def do_GET(self):
        if "to-file" in self.path or "to-content" in self.path:
            target = "file:///etc/hostname" if "to-file" in self.path else "/content.pth"
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
            return
        if "garbled" in self.path:
            self.wfile.write(b"HTTP/1.1 2OO fine\r\n\r\n")
            return
        if "missing" in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        if "unannounced" not in self.path:
            length = len(CONTENT) * (2 if "cut" in self.path else 1)
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(b"" if "empty" in self.path else CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


GOOD = ["content.pth", f"r50-{SHA256[:8]}.pth", f"model_final_{MD5[:6]}.pkl", "to-content"]


@pytest.mark.parametrize("name", [*GOOD, "unannounced.pth"])
def test_a_whole_file_arrives_under_its_name(server, name, tmp_path):
    path = download(f"{server}/{name}", tmp_path / "new" / "file")
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file"]


BAD = {
    "cut.pth": "7000 of 14000 bytes came",
    "empty-unannounced.pth": "0 of some bytes",
    "missing.pth": "404",
    "garbled.pth": "BadStatusLine: HTTP/1.1 2OO fine",
    "to-file": "unknown url type: file|not allowed",
    "r50-00000000.pth": f"sha256 is {SHA256}, which does not begin with 00000000",
    "model_final_000000.pkl": f"md5 is {MD5}",
}


@pytest.mark.parametrize("name", BAD)
def test_anything_else_leaves_no_file(server, name, tmp_path):
    with pytest.raises(OSError, match=BAD[name]):
        download(f"{server}/{name}", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["content.pth", "unannounced.pth"])
def test_a_file_that_is_too_large_is_not_kept(server, name, tmp_path):
    with pytest.raises(OSError, match="larger than 6999 bytes"):
        download(f"{server}/{name}", tmp_path / "file", max_bytes=len(CONTENT) - 1)
    assert list(tmp_path.iterdir()) == []


def test_a_digest_may_be_given(server, tmp_path):
    download(f"{server}/content.pth", tmp_path / "file", sha256=SHA256)
    with pytest.raises(OSError, match="does not begin with ff"):
        download(f"{server}/content.pth", tmp_path / "other", sha256="ff")


def test_what_is_there_is_not_fetched_again(tmp_path):
    (tmp_path / "file").write_bytes(b"earlier")
    assert download("http://127.0.0.1:1/x", tmp_path / "file").read_bytes() == b"earlier"


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://x/y", "/etc/hostname"])
def test_other_schemes_are_refused(url, tmp_path):
    with pytest.raises(OSError, match="neither http nor https"):
        download(url, tmp_path / "file")
