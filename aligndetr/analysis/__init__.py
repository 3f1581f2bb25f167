"""What a finished evaluation says about its model, and how two differ."""

from .commands import alignment_of, report_of
from .evaluations import Evaluation, read_evaluation
from .report import write_report
from .runs import evaluation_of_run

__all__ = [
    "Evaluation",
    "alignment_of",
    "evaluation_of_run",
    "read_evaluation",
    "report_of",
    "write_report",
]
