"""Which predictions answer for which object."""

from .mixed_matcher import MatchRequest, MixedMatcher

__all__ = ["MatchRequest", "MixedMatcher"]
