"""What a finished evaluation says about its model, and how two differ."""

import aligndetr.quiet  # noqa: F401

from .after_evaluation import report_of_finished_run
from .commands import alignment_of, comparison_of, report_of
from .compare import compare_runs, read_runs
from .evaluations import Evaluation, read_evaluation
from .report import write_report
from .runs import evaluation_of_run

__all__ = [
    "Evaluation",
    "alignment_of",
    "compare_runs",
    "comparison_of",
    "evaluation_of_run",
    "read_evaluation",
    "read_runs",
    "report_of",
    "report_of_finished_run",
    "write_report",
]
