"""Losses on their way from the device to the log, and whether they are finite on all ranks."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage
from torch import Tensor

from aligndetr.utils import is_dist_avail_and_initialized


def finite_on_all_ranks(finite: Tensor) -> Tensor:
    """Whether `finite`, 0-d and 0 or 1, is 1 on every rank: 0-d bool, not waited for.

    A collective when processes run together: every rank must call it.
    """
    if is_dist_avail_and_initialized():
        finite = finite.clone()
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    return finite.bool()


class LossLog:
    """Keeps the scalars of some iterations on the device, to move them to the host together."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._iterations: list[int] = []
        self._rows: list[Tensor] = []
        self._data_times: list[float] = []

    def add(self, iteration: int, scalars: Mapping[str, Tensor], data_time: float) -> None:
        """Note the 0-d `scalars` of one iteration; the names must not change between flushes."""
        assert not self._rows or self._names == list(scalars), (self._names, list(scalars))
        self._names = list(scalars)
        self._iterations.append(iteration)
        self._rows.append(torch.stack([s.detach().float() for s in scalars.values()]))
        self._data_times.append(data_time)

    def flush(self, storage: EventStorage | None) -> None:
        """Write to `storage` (None: nowhere) the mean over ranks of what was noted, and forget it.

        Data time is the slowest rank's: all wait for it. One collective, one transfer. The ranks
        must have noted the same iterations; if there are none, nothing happens.
        """
        if not self._rows:
            return
        rows = torch.stack(self._rows)
        data_times = rows.new_tensor(self._data_times)
        table = torch.cat([rows, data_times[:, None]], dim=1)
        if is_dist_avail_and_initialized():
            gathered = [torch.empty_like(table) for _ in range(dist.get_world_size())]
            dist.all_gather(gathered, table)
            stacked = torch.stack(gathered)
            table = stacked.mean(dim=0)
            table[:, -1] = stacked[..., -1].amax(dim=0)
        if storage is not None:
            names = [*self._names, "data_time"]
            for iteration, values in zip(self._iterations, table.tolist()):
                storage.put_scalars(cur_iter=iteration, **dict(zip(names, values)))
        self.__init__()
