"""COCO evaluation: our evaluator against detectron2's with pycocotools, on the same detections.

    python benchmarks/coco_evaluation.py

Simulates COCO's val split: 5,000 images, 80 classes with gaps between their ids, about 7 objects
per image, crowd among them, and 100 detections per image whose scores partly tie. What is timed is
what a run waits for after the last image: from the outputs of the model to the numbers and the
json file of results. Reading the ground truth, which detectron2 does when it is built, counts for
neither. First all numbers, the precision and recall tables and the files are compared; a
difference in any digit ends the run without a time.
"""

import contextlib
import io
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

import aligndetr.quiet  # noqa: F401 (before detectron2)

# isort: split

import numpy as np
import torch
from detectron2 import evaluation as detectron2_evaluation
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aligndetr.evaluation import COCOEvaluator
from aligndetr.evaluation.box_ap import GroundTruth, evaluate_boxes
from benchmarks.timing import BASELINE, Report, command_line, interleave

WIDTH, HEIGHT, CLASSES, DETECTIONS = 640, 480, 80, 100
OBJECTS_PER_IMAGE = 7.4  # COCO val2017: 36,781 boxes in 5,000 images
CATEGORY_IDS = [i for i in range(1, 91) if i % 9 != 4]  # 80 of 90, as COCO has them

Outputs = list[tuple[list[dict], list[dict]]]


def simulate(num_images: int, folder: Path) -> tuple[str, Outputs]:
    """Write a ground truth and register it; returns its name and a model's outputs."""
    rng = np.random.default_rng(0)
    annotations, outputs = [], []
    for image_id in range(1, num_images + 1):
        boxes = random_boxes(rng, min(rng.geometric(1 / (OBJECTS_PER_IMAGE + 1)) - 1, 90))
        present = rng.integers(0, CLASSES, 3)  # an image shows few kinds of things
        labels = rng.choice(present, len(boxes))
        for (x0, y0, x1, y1), label in zip(boxes.round(2).tolist(), labels, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0) * rng.uniform(0.5, 1),  # of a mask in the box
                    "iscrowd": int(rng.random() < 0.012),
                }
            )
        outputs.append(([{"image_id": image_id}], [detect(rng, boxes, labels, present)]))
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT}
            for i in range(1, num_images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORY_IDS],
    }
    path = folder / "ground_truth.json"
    path.write_text(json.dumps(content))
    MetadataCatalog.get(str(path)).set(
        json_file=str(path),
        thing_classes=[category["name"] for category in content["categories"]],
        thing_dataset_id_to_contiguous_id={c: label for label, c in enumerate(CATEGORY_IDS)},
    )
    return str(path), outputs


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) XYXY, of all sizes."""
    corners = rng.random((count, 2)) * (0.8 * WIDTH, 0.8 * HEIGHT)
    sizes = np.minimum(np.exp(rng.normal(4, 1, (count, 2))), (WIDTH, HEIGHT) - corners)
    return np.concatenate([corners, corners + sizes], axis=1)


def detect(
    rng: np.random.Generator, boxes: np.ndarray, labels: np.ndarray, present: np.ndarray
) -> dict[str, Instances]:
    """Up to three boxes near each object, most of the right class; the rest at random."""
    near = rng.integers(0, len(boxes), min(3 * len(boxes), DETECTIONS)) if len(boxes) else []
    targets, num_random = boxes[near], DETECTIONS - len(near)
    sizes = np.tile(targets[:, 2:] - targets[:, :2], 2)
    found = np.concatenate(
        [targets + rng.normal(0, 0.1, targets.shape) * sizes, random_boxes(rng, num_random)]
    )
    guesses = np.concatenate([labels[near], rng.choice(present, num_random)])
    guesses = np.where(rng.random(DETECTIONS) < 0.15, rng.integers(0, CLASSES, DETECTIONS), guesses)
    scores = np.concatenate([rng.beta(3, 3, len(near)), rng.beta(1, 9, num_random)])
    scores = np.where(rng.random(DETECTIONS) < 0.2, scores.round(2), scores)
    order = np.argsort(-scores, kind="stable")
    instances = Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(torch.from_numpy(found[order]).float()),
        scores=torch.from_numpy(scores[order]).float(),
        pred_classes=torch.from_numpy(guesses[order].astype(np.int64)),
    )
    return {"instances": instances}


def run(evaluator: detectron2_evaluation.DatasetEvaluator, outputs: Outputs) -> dict:
    evaluator.reset()
    for batch, predictions in outputs:
        evaluator.process(batch, predictions)
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()


def verify(evaluators: dict, files: dict[str, Path], outputs: Outputs) -> dict:
    """Raise AssertionError where a number differs in any digit; returns the numbers."""
    results = {name: run(evaluator, outputs)["bbox"] for name, evaluator in evaluators.items()}
    theirs, ours = results[BASELINE], results["aligndetr"]
    assert list(ours) == list(theirs)
    np.testing.assert_array_equal(list(ours.values()), list(theirs.values()))
    assert files["aligndetr"].read_bytes() == files[BASELINE].read_bytes()
    return ours


def verify_tables(json_file: str, results_file: Path) -> None:
    """Raise AssertionError where precision, recall or one of the 12 numbers differ in any digit."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(json_file)
        official = COCOeval(coco, coco.loadRes(str(results_file)), "bbox")
        official.evaluate()
        official.accumulate()
        official.summarize()
        results = json.loads(results_file.read_bytes())
        ours = evaluate_boxes(GroundTruth.from_json(json_file), results)
    np.testing.assert_array_equal(ours.eval["precision"], official.eval["precision"])
    np.testing.assert_array_equal(ours.eval["recall"], official.eval["recall"])
    np.testing.assert_array_equal(ours.stats, official.stats)


def main() -> None:
    args = command_line(__doc__, repeats=5).parse_args()
    torch.set_num_threads(args.threads)
    num_images = 200 if args.quick else 5000
    report = Report(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        name, outputs = simulate(num_images, Path(folder))
        folders = {key: Path(folder) / key for key in (BASELINE, "aligndetr")}
        evaluators = {
            BASELINE: detectron2_evaluation.COCOEvaluator(
                name, output_dir=str(folders[BASELINE]), use_fast_impl=False
            ),
            "aligndetr": COCOEvaluator(name, output_dir=str(folders["aligndetr"])),
        }
        files = {key: path / "coco_instances_results.json" for key, path in folders.items()}
        numbers = verify(evaluators, files, outputs)
        verify_tables(name, files["aligndetr"])
        report.note("equal to pycocotools", numbers=len(numbers), AP=numbers["AP"])
        candidates = {key: partial(run, value, outputs) for key, value in evaluators.items()}
        work = f"{num_images} images x {DETECTIONS} detections"
        report.compare(work, interleave(candidates, args.repeats))
    report.save(args.json)


if __name__ == "__main__":
    main()
