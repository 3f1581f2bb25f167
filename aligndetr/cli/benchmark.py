r"""Measure latency and throughput of a trained model, or of a config's with random weights.

    %(prog)s --config-file aligndetr_demo --batch-sizes 1 4 --sizes 320x320 --repeats 10

--sizes are HEIGHTxWIDTH of the images as the model gets them. A call goes from images in main
memory to detections in main memory. KEY=VALUE changes the config.
"""

import argparse
import itertools
import re

from .parsing import config_file, errors_in_one_line, make_parser


def main() -> None:
    """Print a row for each precision, size and batch size, and write all of it as JSON if asked."""
    args = _parse()
    with errors_in_one_line():
        from aligndetr.inference import Predictor
        from aligndetr.profiling import LatencyReport, OutOfMemory, measure_latency

        options = {"device": args.device, "overrides": args.opts}
        if args.checkpoint:
            predictor = Predictor.from_checkpoint(args.checkpoint, args.config_file, **options)
        else:
            predictor = Predictor.from_config(args.config_file, **options)
        report = LatencyReport(predictor.device)
        for line in report.heading():
            print(line)
        for precision, (height, width), batch_size in itertools.product(
            args.precision, args.sizes, args.batch_sizes
        ):
            work = (batch_size, height, width, precision)
            try:
                found = measure_latency(predictor.model, *work, args.repeats, args.warm_up)
            except OutOfMemory:
                print(report.out_of_memory(*work), flush=True)
                continue
            print(report.row(found), flush=True)
        if args.json:
            report.save(args.json)


def _parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--checkpoint", help="model_final.pth of a training")
    parser.add_argument("--config-file", metavar="NAME", type=config_file)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1], help="(1)")
    parser.add_argument("--sizes", type=_size, nargs="+", default=[(800, 1333)], help="(800x1333)")
    parser.add_argument("--precision", nargs="+", default=["fp32"], help="fp32, bf16 (fp32)")
    parser.add_argument("--repeats", type=int, default=50, help="calls that count (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=10, help="calls before (%(default)s)")
    parser.add_argument("--device", help="cuda or cpu; default: the GPU if there is one")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file, too")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="changes of the config")
    args = parser.parse_intermixed_args()
    if not (args.checkpoint or args.config_file):
        parser.error("give --checkpoint, or --config-file for random weights")
    return args


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 800x1333")
    return int(found[1]), int(found[2])
