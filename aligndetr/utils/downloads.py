"""Downloads that end in a whole file of a bounded size and the expected content, or in an error."""

import hashlib
import logging
import os
import re
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

from .files import atomic_path

logger = logging.getLogger(__name__)

MAX_BYTES = 8 << 30
"""A detector with the largest backbones, its optimizer's state included, has a few GB."""

TIMEOUT = 30.0
"""Seconds without any data after which a server is given up."""

_BLOCK = 1 << 20
# torchvision and torch.hub end names with the first digits of the sha256, detectron2's model zoo
# with those of the md5: resnet50-0676ba61.pth, model_final_280758.pkl.
_DIGESTS = {
    "sha256": re.compile(r"-([0-9a-f]{8,64})\.\w+"),
    "md5": re.compile(r"model_final_([0-9a-f]{6})\.pkl"),
}


def download(
    url: str, path: str | os.PathLike, *, max_bytes: int = MAX_BYTES, sha256: str = ""
) -> Path:
    """Fetch `url` to `path`, unless it is there.

    The file is written to a temporary name and appears whole. Its digest is compared with
    `sha256` and with the digits that the name of the url ends in, if it has any.

    Args:
        url: http or https.
        sha256: hexadecimal digits that the digest begins with; "": unknown.

    Raises:
        OSError: the server does not answer or sends less than it says; the file is larger than
            `max_bytes`; another scheme; or the content is not the expected one.
    """
    path = Path(path)
    if path.is_file():
        return path
    if urlparse(url).scheme not in ("http", "https"):
        raise OSError(f"{url!r} is neither http nor https")
    logger.info("Downloading %s to %s", url, path)
    digests = _expected_digests(url, sha256)
    try:
        with _open(url) as response, atomic_path(path) as temporary:
            _copy(response, temporary, max_bytes, digests)
    except HTTPException as error:  # a server that breaks off; not an OSError
        raise OSError(f"{type(error).__name__}: {error}") from error
    return path


def _open(url: str):
    """Redirections may lead to http and https only: urllib knows ftp and file too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    request = urllib.request.Request(url, headers={"User-Agent": "aligndetr"})
    return opener.open(request, timeout=TIMEOUT)


def _copy(response, path: Path, max_bytes: int, digests: list[tuple[str, str]]) -> None:
    announced = response.headers.get("Content-Length")
    announced = int(announced) if announced and announced.isdecimal() else None
    hashes = {kind: hashlib.new(kind, usedforsecurity=False) for kind, _ in digests}
    count = 0
    with open(path, "wb") as file:
        while block := response.read(_BLOCK):
            count += len(block)
            if max(count, announced or 0) > max_bytes:
                raise OSError(f"it is larger than {max_bytes} bytes")
            for found in hashes.values():
                found.update(block)
            file.write(block)
    if not count or (announced is not None and count < announced):
        raise OSError(f"only {count} of {announced or 'some'} bytes came")
    for kind, expected in digests:
        found = hashes[kind].hexdigest()
        if not found.startswith(expected):
            raise OSError(f"its {kind} is {found}, which does not begin with {expected}")


def _expected_digests(url: str, sha256: str) -> list[tuple[str, str]]:
    """Kinds and first digits of what the content must have."""
    name = os.path.basename(urlparse(url).path)
    found = {kind: pattern.search(name) for kind, pattern in _DIGESTS.items()}
    by_name = [(kind, match[1]) for kind, match in found.items() if match]
    return [*by_name, *([("sha256", sha256.lower())] if sha256 else [])]
