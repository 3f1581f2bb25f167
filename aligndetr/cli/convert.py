r"""Write weights of any known kind in another format, or put them on the Hugging Face Hub.

    %(prog)s output/demo/model_final.pth trees.safetensors
    %(prog)s output/demo/model_final.pth trees_mmdet.pth --to mmdet

Weights of mmdetection, detrex, torchvision, detectron2 and safetensors are recognised by content.
An OUTPUT of hf://user/model puts them on the Hub. KEY=VALUE changes the config.
"""

import argparse
import logging

from .parsing import config_file, errors_in_one_line, make_parser

FORMATS = ("safetensors", "detrex", "mmdet")


def main() -> int:
    """Parse, convert, and say what the weights were and what they need."""
    args = _parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors_in_one_line():
        from aligndetr.inference import convert_checkpoint, push_to_hub

        common = {"config": args.config_file, "ema": args.ema, "overrides": args.opts}
        if args.output.startswith("hf://"):
            repo = args.output.removeprefix("hf://")
            lines = [push_to_hub(args.source, repo, private=args.private, **common)]
        else:
            notes = convert_checkpoint(args.source, args.output, args.to, **common)
            lines = [*notes, args.output]
    print(*lines, sep="\n")
    return 0


def _parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("source", help="a file, detectron2://…, https://… or hf://user/model")
    parser.add_argument("output", help="a file that is not there yet, or hf://user/model")
    parser.add_argument("--to", choices=FORMATS, default=FORMATS[0], help="(%(default)s)")
    parser.add_argument(
        "--config-file", type=config_file, metavar="NAME", help="where the checkpoint holds none"
    )
    parser.add_argument("--ema", action="store_true", help="take the averaged weights")
    parser.add_argument("--private", action="store_true", help="make the Hub's model private")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="changes of the config")
    return parser.parse_intermixed_args()
