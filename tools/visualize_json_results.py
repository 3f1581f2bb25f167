r"""Draw the worst images of an evaluation: ground truth left, detections right, the worst first.

    %(prog)s output/demo --output worst
    %(prog)s found.json --ground-truth datasets/trees/annotations/instances_val.json \
        --images datasets/trees/val --output worst

The first takes what a run has left, the second COCO results or what aligndetr predict has written.
The worst image has the lowest sum of IoU over its true positives / (TP + FP / 2 + FN / 2), at IoU
0.5 and the score of the highest F1. Green is right or found, vermilion wrong or missed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

from aligndetr.analysis import evaluation_of_run, read_evaluation
from aligndetr.analysis.worst_images import write_worst_images
from aligndetr.cli.parsing import errors_in_one_line, make_parser


def main() -> None:
    """Read, draw, and print a line for each image."""
    parser = make_parser(__doc__)
    parser.add_argument("source", help="folder of a run, or results as json")
    parser.add_argument("--ground-truth", help="COCO json; default: that of the run's config")
    parser.add_argument("--images", help="folder of the images; default: that of the config")
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument("--score-threshold", type=float, help="in place of that of the best F1")
    parser.add_argument("--num-images", type=int, default=20, help="at most (%(default)s)")
    parser.add_argument("--edge", type=int, default=640, help="of a picture, px (%(default)s)")
    args = parser.parse_args()
    with errors_in_one_line():
        source = Path(args.source)
        if source.suffix != ".json":
            evaluation = evaluation_of_run(source, args.ground_truth, args.images)
        elif args.ground_truth:
            evaluation = read_evaluation(source.stem, source, args.ground_truth, args.images)
        else:
            parser.error("results need --ground-truth and --images")
        score, written = write_worst_images(
            evaluation, args.output, args.score_threshold, args.num_images, args.edge
        )
    print(f"detections with score >= {score:.3f}")
    for path, judged in written:
        counts = f"{judged.true} right, {judged.false} wrong, {judged.missed} missed"
        print(f"{judged.quality:.3f}  {counts}  {path}")


if __name__ == "__main__":
    main()
