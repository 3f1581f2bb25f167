"""Small things without a home of their own. Imports nothing of ours."""

from .dist import get_world_size, is_dist_avail_and_initialized
from .maths import inverse_sigmoid, smaller_size

__all__ = ["get_world_size", "inverse_sigmoid", "is_dist_avail_and_initialized", "smaller_size"]
