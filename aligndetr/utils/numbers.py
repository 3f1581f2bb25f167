"""Numbers of which some are NaN: unknown, or not defined."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def without_nan(value: Any) -> Any:
    """A copy of nested dicts and lists with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def known_mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean of those that are not NaN; NaN if there is none."""
    values = np.asarray(values)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
