r"""Export a detector to ONNX or torch.export's format, and check that the file finds the same.

    %(prog)s --checkpoint output/demo/model_final.pth \
        --output output/demo/model.onnx --eval

KEY=VALUE changes the config. The file is compared with the model on some images of the config's val
set, or on --images, and with --eval by its AP on all of it. It appears only if it finds the same;
the exit status is 1 if it does not.
"""

import argparse

from .parsing import config_file, errors_in_one_line, make_parser, move_overrides


def main() -> None:
    """Refuse what cannot work before anything is loaded; export; say what was compared."""
    args = _parse()
    with errors_in_one_line():
        from aligndetr.export import ap_check, check_output, export_model, validation_images
        from aligndetr.inference import Predictor

        check_output(args.output, args.half)
        common = {"device": "cpu", "overrides": args.opts}
        if args.checkpoint:
            predictor = Predictor.from_checkpoint(
                args.checkpoint, args.config_file, ema=args.ema, **common
            )
        else:
            predictor = Predictor.from_config(args.config_file, **common)
        images = args.images or validation_images(predictor)
        check = ap_check(predictor) if args.eval else None
        export_model(predictor, args.output, images, half=args.half, check=check)


def _parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--checkpoint", help="model_final.pth of a training; none: random weights")
    parser.add_argument("--output", required=True, help="FILE.onnx or FILE.pt2")
    parser.add_argument(
        "--config-file", type=config_file, metavar="NAME", help="where the checkpoint holds none"
    )
    parser.add_argument("--half", action="store_true", help="ONNX with weights in float16")
    parser.add_argument("--images", nargs="+", metavar="FILE", help="images to compare on")
    parser.add_argument("--eval", action="store_true", help="compare the AP on the val set, too")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="changes of the config")
    args = parser.parse_intermixed_args()
    move_overrides(args, "images")
    if not (args.checkpoint or args.config_file):
        parser.error("give --checkpoint, or --config-file alone for random weights")
    return args
