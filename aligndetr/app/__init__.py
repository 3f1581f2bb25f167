"""A page in the browser on which a trained detector is tried. Needs the extra `app`."""

from .page import open_page

__all__ = ["open_page"]
