"""Many trainings that differ in a few keys: which they are, running them, and their table."""

from .grid import Run, expand, expand_words
from .results import results_table, write_results
from .running import Slurm, measure_alignment, prepare, run_on_slurm, run_one_by_one

__all__ = [
    "Run",
    "Slurm",
    "expand",
    "expand_words",
    "measure_alignment",
    "prepare",
    "results_table",
    "run_on_slurm",
    "run_one_by_one",
    "write_results",
]
