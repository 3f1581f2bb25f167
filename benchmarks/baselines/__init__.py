"""The reference's formulation of each part, written plainly: what benchmarks compare with.

Kept apart from the library on purpose: nothing here changes when the library gets faster. Weights
and settings are those of the library's own modules, so results can be compared number by number.
"""
