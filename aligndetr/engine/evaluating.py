"""When a run evaluates itself, and the checkpoint of its best evaluation."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import hooks as d2_hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from aligndetr.checkpoint import CheckpointError, read_checkpoint
from aligndetr.utils.random_states import preserved_random_states

from .metrics_file import has_evaluation
from .saving import SaveHook

logger = logging.getLogger(__name__)

BEST = "model_best"
BEST_KEY = "best_metric"
"""Where a checkpoint holds the {"name", "value", "iteration"} of the best evaluation so far."""


class EvalHook(d2_hooks.EvalHook):
    """detectron2's EvalHook, and four things more.

    Evaluating draws no random numbers from training. model_best.pth is the checkpoint of the
    highest `best_metric`. An evaluation that was interrupted is made up for when the run is
    resumed. And a run that failed in its last step is not evaluated: that would be by the rank
    that failed alone, and the others would wait for it.

    Args:
        period: in iterations; 0 evaluates at the end only.
        function: gives {task: {metric: value}}, {} on all ranks but the main one.
        saver: saves the best; registered before this hook.
        device: the model's.
        best_metric: "task/metric", the higher the better; None keeps no best. If it is not
            there, but "ema/task/metric" is, that counts.
        metrics_json: of this run, to see what has been evaluated.
    """

    def __init__(
        self,
        period: int,
        function: Callable[[], Mapping[str, Any]],
        saver: SaveHook,
        device: torch.device,
        best_metric: str | None,
        metrics_json: Path,
    ):
        super().__init__(period, self._evaluate)
        self._function, self._saver, self._device = function, saver, device
        self._best_metric, self._metrics_json = best_metric, metrics_json
        self._results: dict[str, float] = {}
        self._best: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {BEST_KEY: self._best} if self._best else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best = self._of_this_metric(state[BEST_KEY])

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if not start:
            return
        self._best = self._best_so_far()
        is_due = self._period > 0 and start % self._period == 0 and start < self.trainer.max_iter
        if is_due and not comm.all_gather(has_evaluation(self._metrics_json, start))[0]:
            logger.info("Evaluating iteration %d, which the run did not come to", start - 1)
            self.trainer.iter = self.trainer.storage.iter = start - 1
            self._do_eval()
            self.trainer.iter = self.trainer.storage.iter = start

    def after_step(self) -> None:
        super().after_step()
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            self._saver.stop_if_asked()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()
            self._function = None  # likely holds the model, as detectron2 says of its own

    def _evaluate(self) -> Mapping[str, Any]:
        assert self._function is not None, "the training goes on"
        with preserved_random_states(self._device):
            results = self._function()
        self._results = flatten_results_dict(results)
        return results

    def _do_eval(self) -> None:
        super()._do_eval()
        before = self._best
        if comm.all_gather(self._is_best())[0]:
            # After the last step, `iter` counts one more.
            self._best["iteration"] = min(self.trainer.iter, self.trainer.max_iter - 1)
            extra = {"is_newest": False, BEST_KEY: self._best}
            if not self._saver.save(BEST, self._best["iteration"], **extra):
                self._best = before  # so that the next that is better than the file is kept

    def _is_best(self) -> bool:
        """Note the results in `_best` if they are; False on other ranks."""
        if self._best_metric is None or not self._results:
            return False
        names = [n for n in (self._best_metric, f"ema/{self._best_metric}") if n in self._results]
        if not names:
            logger.error(
                "`train.checkpointer.best_metric` (=%r) is none of the metrics, so there is no "
                "model_best.pth; choose one of %s",
                self._best_metric,
                sorted(self._results),
            )
            return False
        value = float(self._results[names[0]])
        if math.isnan(value) or value <= self._best.get("value", -math.inf):
            return False
        self._best = {"name": names[0], "value": value}
        logger.info("Best %s so far: %.4f", names[0], value)
        return True

    def _best_so_far(self) -> dict[str, Any]:
        """Of model_best.pth, which may be later than the checkpoint; the latter's without it."""
        path = self._metrics_json.with_name(f"{BEST}.pth")
        if not comm.is_main_process():
            return {}
        if not path.exists():
            if self._best:
                logger.warning(
                    "%s is not there; an evaluation above %.4f makes one", path, self._best["value"]
                )
            return self._best
        try:
            return self._of_this_metric(read_checkpoint(str(path)).get(BEST_KEY, {}))
        except CheckpointError as error:
            logger.warning("%s; the next evaluation replaces it", error)
            return {}

    def _of_this_metric(self, best: Mapping[str, Any]) -> dict[str, Any]:
        name = str(best.get("name", "")).removeprefix("ema/")
        return dict(best) if name == str(self._best_metric).removeprefix("ema/") else {}
