"""One evaluation: run the model over a data set, print the tables, return the numbers."""

import json
import logging
from collections.abc import Iterable, Sequence

from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from tabulate import tabulate
from torch import nn

from aligndetr.utils.numbers import without_nan

logger = logging.getLogger(__name__)


def evaluate(
    model: nn.Module,
    data_loader: Iterable,
    evaluator: DatasetEvaluator,
    class_names: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Evaluate a detector.

    Args:
        model: not wrapped by DDP; put to eval mode meanwhile.
        data_loader: gives lists of detectron2 dicts; has a length.
        evaluator: collects the model's outputs and turns them into metrics.
        class_names: in label order; lets the table per class be printed for a single class too.

    Returns:
        {"bbox": {"AP": …, "AP50": …, "AP-<class>": …}}, in percent, on the main process; {} on
        others.
    """
    results = inference_on_dataset(model, data_loader, evaluator)
    if not results:
        return {}
    if len(class_names) == 1:
        _add_single_class(results, class_names[0])
    print_csv_format(results)
    logger.info("Evaluation results to every digit: %s", _as_json(results))
    return results


def _as_json(results: dict[str, dict[str, float]]) -> str:
    """What has no value, as AP of a size that no object has, is null."""
    return json.dumps(without_nan(results), allow_nan=False)


def _add_single_class(results: dict[str, dict[str, float]], name: str) -> None:
    """COCOEvaluator leaves the table per class out where it would repeat the total."""
    for task, metrics in results.items():
        if "AP" in metrics:
            metrics.setdefault(f"AP-{name}", metrics["AP"])
            table = tabulate(
                [[name, metrics["AP"]]],
                headers=["category", "AP"],
                tablefmt="pipe",
                floatfmt=".3f",
                numalign="left",
            )
            logger.info("Per-category %s AP:\n%s", task, table)
