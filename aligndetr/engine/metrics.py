"""Losses on their way from the device to the log, and the alarm when one is not finite."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor

from aligndetr.utils import is_dist_avail_and_initialized
from aligndetr.utils.errors import NonFinitePredictionError

_UNTOUCHED = "the weights are those of the iteration before and no checkpoint was written."


def describe_batch(batch: list[dict]) -> str:
    """The images of a batch for an error message: ids and file names."""
    images = [f"{x.get('image_id', '?')} ({x.get('file_name', 'no file name')})" for x in batch]
    return f"image{'s' * (len(images) != 1)} {', '.join(images)}"


class NonFiniteLossError(FloatingPointError):
    """The total loss was NaN or infinite on at least one rank; the optimizer did not step."""

    @classmethod
    def from_all_ranks(
        cls,
        iteration: int,
        losses: Mapping[str, Tensor],
        batch: list[dict],
        failure: NonFinitePredictionError | None = None,
    ) -> "NonFiniteLossError":
        """Collect what the ranks concerned saw. A collective: every rank must call it.

        Args:
            failure: what this rank has instead of losses.
        """
        report = None
        if failure is not None:
            report = f"rank {comm.get_rank()}: {failure}"
        elif not sum(losses.values()).isfinite():
            values = {name: loss.item() for name, loss in losses.items()}
            report = f"rank {comm.get_rank()}: {values} on {describe_batch(batch)}"
        lines = [line for line in comm.all_gather(report) if line is not None]
        return cls(
            f"the loss became NaN or infinite at iteration {iteration}; {_UNTOUCHED} Look at the "
            "images below, or lower `optimizer.lr`, or switch `train.amp.enabled` off.\n"
            + "\n".join(lines)
        )


class NonFiniteGradientError(FloatingPointError):
    """The losses were finite but a gradient was not; the optimizer did not step."""

    @classmethod
    def from_all_ranks(
        cls, iteration: int, losses: Mapping[str, Tensor], batch: list[dict], names: list[str]
    ) -> "NonFiniteGradientError":
        """Collect what the ranks saw. A collective: every rank must call it.

        Args:
            names: of the parameters concerned.
        """
        values = {name: loss.item() for name, loss in losses.items()}
        lines = comm.all_gather(f"rank {comm.get_rank()}: {values} on {describe_batch(batch)}")
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return cls(
            f"at iteration {iteration} the losses are finite, but the gradients of "
            f"{', '.join(names[:3])}{more} are NaN, infinite or too large for a norm; "
            f"{_UNTOUCHED} Lower `optimizer.lr`, or look for an operation whose derivative is "
            "infinite (torch.autograd.set_detect_anomaly finds it).\n" + "\n".join(lines)
        )


class NonFiniteStepError(NonFinitePredictionError):
    """A NonFinitePredictionError completed by what the model cannot know.

    Attributes:
        layer, batch_index: see NonFinitePredictionError.
        iteration: counted from 0, as in metrics.json.
        batch: the batch of this process.
    """

    def __init__(self, error: NonFinitePredictionError, iteration: int, batch: list[dict]):
        super().__init__(error.layer, error.batch_index)
        self.iteration = iteration
        self.batch = batch

    def __str__(self) -> str:
        affected = describe_batch(self.batch[self.batch_index : self.batch_index + 1])
        return (
            f"{super().__str__()} This happened at iteration {self.iteration} with {affected}; "
            f"in its batch: {describe_batch(self.batch)}."
        )


def finite_on_all_ranks(loss: Tensor) -> Tensor:
    """Whether a 0-d loss is finite on every rank: 0-d bool on its device, not waited for.

    A collective when processes run together: every rank must call it.
    """
    finite = loss.detach().isfinite().float()
    if is_dist_avail_and_initialized():
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

        Data time is the slowest rank's: all wait for it. One collective, one transfer.
        """
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
