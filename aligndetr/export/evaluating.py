"""The config's val set: images to compare on, and the AP of an exported file."""

from collections.abc import Callable, Sequence

from detectron2.config import instantiate
from omegaconf import DictConfig
from tabulate import tabulate

from aligndetr.evaluation import evaluate
from aligndetr.inference import Predictor
from aligndetr.inference.predictions import choose_evenly

from .parity import ParityError
from .running import RunningDetector

NUM_IMAGES = 3
MAX_AP_DIFFERENCE = 0.1
METRICS = ("AP", "AP50", "AP75")


def validation_images(predictor: Predictor) -> Sequence[str]:
    """Files of a few images of the val set, at even distances.

    Raises:
        ValueError: the data is not there.
    """
    try:
        records = instantiate(_config_of(predictor).dataloader.test.dataset)
        return [record["file_name"] for record in choose_evenly(records, NUM_IMAGES)]
    except (ValueError, OSError) as error:
        raise ValueError(
            f"there is no val set to compare on ({error}); name images to compare on instead"
        ) from error


def _config_of(predictor: Predictor) -> DictConfig:
    if predictor.config is None:
        raise ValueError("the predictor was made without a config, which would name a val set")
    return predictor.config


def ap_check(
    predictor: Predictor,
    max_difference: float = MAX_AP_DIFFERENCE,
    report: Callable[[str], None] = print,
) -> Callable[[RunningDetector], None]:
    """A check for `export_model`: the AP on the val set differs by at most `max_difference`.

    The check raises a ParityError if it differs by more. It reports AP, AP50 and AP75 of both.
    """
    cfg = _config_of(predictor).copy()
    cfg.dataloader.evaluator.output_dir = None  # the training's own results stay there

    def evaluation_of(detector) -> dict[str, float]:
        loader, evaluator = (instantiate(cfg.dataloader[part]) for part in ("test", "evaluator"))
        return evaluate(detector, loader, evaluator, predictor.class_names)["bbox"]

    def check(exported: RunningDetector) -> None:
        metrics = {"model": evaluation_of(predictor.model), "exported": evaluation_of(exported)}
        rows = [[who, *(of[name] for name in METRICS)] for who, of in metrics.items()]
        report(tabulate(rows, ["", *METRICS], floatfmt=".3f"))
        difference = abs(metrics["model"]["AP"] - metrics["exported"]["AP"])
        if not difference <= max_difference:
            raise ParityError(
                f"the AP of the exported model differs by {difference:.3f}, more than "
                f"{max_difference}; no file was written"
            )

    return check
