"""One training step, and the numbers it leaves behind.

detectron2's SimpleTrainer with five differences: autocast, several micro-batches per step,
gradient clipping, losses that leave the device once per log period, and losses or gradients that
are not finite keep every rank from touching the weights.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aligndetr.data import CorruptImages
from aligndetr.utils.errors import NonFinitePredictionError

from .bad_steps import BadSteps, MicroBatch
from .build import without_ddp
from .gradients import check_clip_arguments, clip_gradients, gradient_norms
from .metrics import LossLog, finite_on_all_ranks
from .optim import with_hyperparameters_of
from .precision import autocast_dtype


class Trainer(SimpleTrainer):
    """Trains a model that maps a batch to a dict of named 0-d losses.

    With `grad_accum_steps` k, a step is over k batches of the loader, one after another. A model
    whose losses are sums over objects, divided by their number, has to know the objects of all of
    them beforehand. It says so by a method `losses_over(batches)`, a context manager in which its
    losses of one of these batches are that batch's part of the losses of all of them, to be
    summed up; see `AlignDETR.losses_over`. Without the method, losses are averaged over the k.

    Args:
        model: batch (list of detectron2 dicts) to {name: loss}; may be wrapped by DDP.
        data_loader: iterable of batches; its iterator is made at the first step.
        optimizer: holds the parameters to update and to clip.
        amp: autocast the forward pass.
        amp_dtype: "bfloat16", or "float16", whose gradients are scaled.
        clip_grad: how `torch.nn.utils.clip_grad_norm_` would clip (`max_norm`, `norm_type`); None
            does not clip.
        log_period: iterations between two transfers of the losses to the host, and between two
            reductions over the ranks.
        grad_accum_steps: k, batches per step.
        max_bad_steps: that many steps in a row whose losses or gradients are not finite end the
            training; fewer are left out.
        max_corrupt_share: if more of the images cannot be read, training ends.
        report_dir: where bad_steps.json and corrupt_images.json go; None: nowhere.

    Attributes:
        step_taken: whether the optimizer has changed the weights in the last iteration.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        amp: bool = False,
        clip_grad: Mapping[str, float] | None = None,
        log_period: int = 20,
        *,
        amp_dtype: str = "bfloat16",
        grad_accum_steps: int = 1,
        max_bad_steps: int = 10,
        max_corrupt_share: float = 0.05,
        report_dir: str | None = None,
    ):
        super().__init__(model, data_loader, optimizer, gather_metric_period=log_period)
        self.device = next(model.parameters()).device
        self.amp = amp
        self.amp_dtype = autocast_dtype(amp_dtype, self.device) if amp else torch.float32
        # float16 alone needs its gradients scaled: bfloat16 has the range of float32.
        scaled = self.amp_dtype == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.clip_grad = dict(clip_grad) if clip_grad is not None else None
        if self.clip_grad is not None:
            check_clip_arguments(self.clip_grad)
        self.grad_accum_steps = grad_accum_steps
        self.loss_log = LossLog()
        self.bad_steps = BadSteps(max_bad_steps, report_dir)
        self.corrupt_images = CorruptImages(max_corrupt_share, report_dir)
        self.step_taken = False

    def run_step(self) -> None:
        """Forward and backward for each micro-batch, clip, step.

        Each error is raised with the weights as they were before the step.

        Raises:
            NonFiniteLossError, NonFiniteGradientError, NonFiniteStepError: `max_bad_steps` in a
                row; on every rank one of them.
            DatasetError: more than `max_corrupt_share` of the images cannot be read; after the
                step, on every rank.
        """
        assert self.model.training, "the model was left in eval mode"
        batches, data_time = self._next_batches()
        self.optimizer.zero_grad(set_to_none=True)
        parts, losses_are_finite = self._forward_and_backward(batches)
        self.step_taken = False
        if losses_are_finite is None:  # known already, so the gradients are not complete
            self.bad_steps.handle(self.iter, parts)
        else:
            self.after_backward()
            norm = self._step(parts, losses_are_finite)
            if self.step_taken:
                self.bad_steps.good_step()
                self._note(parts, norm, data_time)
        self._log()

    def _next_batches(self) -> tuple[list[list[dict]], float]:
        """The micro-batches of a step, and the seconds they were waited for."""
        start = time.perf_counter()
        batches = [next(self._data_loader_iter) for _ in range(self.grad_accum_steps)]
        for batch in batches:
            self.corrupt_images.take_notes(batch)
        return batches, time.perf_counter() - start

    def _forward_and_backward(
        self, batches: Sequence[list[dict]]
    ) -> tuple[list[MicroBatch], Tensor | None]:
        """Fill the gradients of a step.

        Returns:
            What the batches gave, with losses that sum up to those of the step; and whether they
            are finite on all ranks, 0-d bool on the device, or None: they are not, and the
            gradients are not those of the step.
        """
        parts, finite = [], torch.ones((), device=self.device)
        with self._losses_of_one_step(batches) as share:
            for number, batch in enumerate(batches, start=1):
                is_last = number == len(batches)
                with contextlib.nullcontext() if is_last else self._no_sync():
                    part = self._forward(batch, share)
                    parts.append(part)
                    finite = finite * part.total.detach().isfinite()
                    if is_last:
                        finite = finite_on_all_ranks(finite)
                        if self._is_known_to_be_bad(parts, finite):
                            return parts, None
                    if part.failure is None:
                        self.grad_scaler.scale(part.total).backward()
        return parts, finite

    @contextlib.contextmanager
    def _losses_of_one_step(self, batches: Sequence[list[dict]]) -> Iterator[float]:
        """Gives what the losses of each of `batches` are to be multiplied by."""
        losses_over = getattr(without_ddp(self.model), "losses_over", None)
        if len(batches) == 1 or losses_over is None:
            yield 1 / len(batches)
        else:
            with losses_over(batches):
                yield 1.0

    def _no_sync(self):
        """Gradients of all but the last micro-batch stay on their rank until that one's."""
        is_ddp = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if is_ddp else contextlib.nullcontext()

    def _forward(self, batch: list[dict], share: float) -> MicroBatch:
        try:
            with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp):
                losses = self.model(batch)
        except NonFinitePredictionError as error:
            return MicroBatch(batch, {}, torch.tensor(math.nan, device=self.device), error)
        if share != 1:
            losses = {name: loss * share for name, loss in losses.items()}
        total: Any = sum(losses.values())  # a Tensor: no model is without a loss
        return MicroBatch(batch, losses, total)

    def _is_known_to_be_bad(self, parts: Sequence[MicroBatch], finite: Tensor) -> bool:
        """Asked before the last backward pass; the same on all ranks.

        Several ranks wait for the device here: one without losses could not join the all-reduce
        of that pass, and the others would wait there for ever. (The matcher has waited for the
        device just before.) One rank alone waits later, once.
        """
        if comm.get_world_size() == 1:
            return any(part.failure is not None for part in parts)
        return not finite

    def _step(self, parts: Sequence[MicroBatch], losses_are_finite: Tensor) -> Tensor:
        """Clip the gradients and step, or report why not; the norm of the gradients, 0-d.

        DDP has left the same gradients on all ranks, so each finds the same without asking.
        """
        self.grad_scaler.unscale_(self.optimizer)
        clip = self.clip_grad or {}
        parameters = self._stepped_parameters()
        norms, norm = gradient_norms(parameters, clip.get("norm_type", 2.0))
        # The step's only wait for the device.
        flags = torch.stack([losses_are_finite, norms.isfinite().all()]).tolist()
        losses_are_finite, gradients_are_finite = flags
        if not losses_are_finite or not (gradients_are_finite or self._scale_can_fall()):
            names = self._names_of_infinite(parameters, norms) if losses_are_finite else []
            self.grad_scaler.update()  # forget that they are unscaled
            self.bad_steps.handle(self.iter, parts, names)
            return norm
        if clip:
            clip_gradients(parameters, clip["max_norm"], norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self.step_taken = gradients_are_finite
        return norm

    def _scale_can_fall(self) -> bool:
        """float16 gradients overflow now and then: the scaler then leaves the step out.

        Below a scale of 1 it is not the scale that they overflow for.
        """
        return self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() >= 1

    def _stepped_parameters(self) -> list[nn.Parameter]:
        """Those that the optimizer is about to change."""
        groups = self.optimizer.param_groups
        return [p for group in groups for p in group["params"] if p.grad is not None]

    def _names_of_infinite(self, parameters: Sequence[nn.Parameter], norms: Tensor) -> list[str]:
        names = {p: name for name, p in without_ddp(self.model).named_parameters()}
        return [
            names.get(p, "a parameter outside the model")
            for p, norm in zip(parameters, norms.tolist())
            if not math.isfinite(norm)
        ]

    def _note(self, parts: Sequence[MicroBatch], norm: Tensor, data_time: float) -> None:
        names = parts[0].losses
        losses = {name: sum(part.losses[name].detach() for part in parts) for name in names}
        total = sum(part.total.detach() for part in parts)
        scalars = {**losses, "total_loss": total, "grad_norm": norm}
        self.loss_log.add(self.iter, scalars, data_time)

    def _log(self) -> None:
        is_last = self.iter + 1 == self.max_iter
        if (self.iter + 1) % self.gather_metric_period and not is_last:
            return
        storage = self.storage if comm.is_main_process() else None
        self.loss_log.flush(storage)
        if storage is not None and self.bad_steps.total:
            storage.put_scalar("bad_steps", self.bad_steps.total, smoothing_hint=False)
        self.corrupt_images.share()

    def state_dict(self) -> dict:
        """Iteration, hooks, optimizer, gradient scaler, bad steps and images, as tensors and
        plain values."""
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "bad_steps": self.bad_steps.state_dict(),
            "corrupt_images": self.corrupt_images.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping) -> None:
        """Take up the state of `state_dict()`; switching `amp` on or off between is allowed.

        The optimizer keeps its own hyperparameters, see `with_hyperparameters_of`.
        """
        optimizer_state = with_hyperparameters_of(self.optimizer, state_dict["optimizer"])
        super().load_state_dict({**state_dict, "optimizer": optimizer_state})
        if scaler_state := state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(scaler_state)
        if bad_steps := state_dict.get("bad_steps"):
            self.bad_steps.load_state_dict(bad_steps)
        if corrupt_images := state_dict.get("corrupt_images"):
            self.corrupt_images.load_state_dict(corrupt_images)
