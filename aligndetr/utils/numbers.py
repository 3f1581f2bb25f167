"""Numbers on their way to a file."""

import math
from typing import Any


def without_nan(value: Any) -> Any:
    """A copy of nested dicts and lists with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
