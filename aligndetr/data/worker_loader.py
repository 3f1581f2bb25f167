"""torch's DataLoader, whose workers are started so that they live and end with the run."""

import contextlib
import multiprocessing
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

from torch.utils.data import DataLoader

from .worker_output import write_past_progress_bar
from .worker_signals import leave_signals_to_parent, stop_signals_blocked


class WorkerLoader(DataLoader):
    """To be given a `worker_init_fn` that calls `start_worker`."""

    def __iter__(self) -> Iterator[Any]:
        with _signals_of_workers_blocked() if self.num_workers else contextlib.nullcontext():
            return super().__iter__()


def start_worker(worker_id: int) -> None:
    """To be called in a worker, first of all (`worker_init_fn` of a `WorkerLoader`)."""
    leave_signals_to_parent(worker_id)
    write_past_progress_bar(worker_id)


@contextlib.contextmanager
def _signals_of_workers_blocked() -> Iterator[None]:
    if multiprocessing.get_start_method() != "fork":
        # Else it is started together with the first worker, and Python 3.11 then unblocks signals.
        resource_tracker.ensure_running()
    with stop_signals_blocked():
        yield
