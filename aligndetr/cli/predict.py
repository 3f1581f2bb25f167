r"""Find objects in images and videos; write annotated ones, COCO results or a table.

    %(prog)s --checkpoint output/demo/model_final.pth \
        --input datasets/trees/val --output found

KEY=VALUE changes the config. --input takes files, patterns, folders and the number of a camera.
--output is a folder for annotated images and videos, FILE.mp4 for one video, FILE.json or FILE.csv.
A file that is no image is reported and the rest goes on; the exit status is then 1. Ctrl-C keeps
what was found until then.
"""

import argparse
import sys

from .parsing import (
    add_predictor_options,
    errors_in_one_line,
    load_predictor,
    make_parser,
    move_overrides,
)


def main() -> int:
    """Parse, predict, and say what was written."""
    args = _parse()
    with errors_in_one_line():
        from aligndetr.inference import find_inputs, predict_files

        files = find_inputs(args.input)
        predictor = load_predictor(args)
        try:
            broken = predict_files(
                predictor, files, args.output, args.score_threshold, args.batch_size, args.tile
            )
        except KeyboardInterrupt:
            print(f"stopped; {args.output} holds what was found until then", file=sys.stderr)
            return 130
    print(f"{len(files) - len(broken)} of {len(files)} files: {args.output}")
    return 1 if broken else 0


def _parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_predictor_options(parser)
    parser.add_argument("--input", required=True, nargs="+", help="files, folders, 0 for a camera")
    parser.add_argument("--output", required=True, help="folder, FILE.json, .csv or .mp4")
    parser.add_argument("--score-threshold", type=float, default=0.3, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=1, help="images at once (%(default)s)")
    args = parser.parse_intermixed_args()
    move_overrides(args, "input")
    if not args.input:
        parser.error("--input names no file")
    return args
