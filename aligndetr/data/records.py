"""What loaders read."""

from typing import Any, Protocol


class Records(Protocol):
    """detectron2's dict of each image by index: a list, or a map-style data set that has a length.

    (torch's `Dataset` promises no length.)
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...
