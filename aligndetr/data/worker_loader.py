"""torch's DataLoader, whose workers are started so that they live and end with the run."""

import contextlib
import multiprocessing
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

from torch.utils.data import DataLoader

from .worker_signals import stop_signals_blocked


class WorkerLoader(DataLoader):
    """To be given a `worker_init_fn` that calls `leave_signals_to_parent`."""

    def __iter__(self) -> Iterator[Any]:
        with _signals_of_workers_blocked() if self.num_workers else contextlib.nullcontext():
            return super().__iter__()


@contextlib.contextmanager
def _signals_of_workers_blocked() -> Iterator[None]:
    if multiprocessing.get_start_method() != "fork":
        # Would be started together with the first worker, and before Python 3.13 that unblocks.
        resource_tracker.ensure_running()
    with stop_signals_blocked():
        yield
