"""Find objects in images, patterns and folders; write annotated images, COCO results or a table.

python tools/demo.py --checkpoint output/demo/model_final.pth \
    --input datasets/trees/val --output found [KEY=VALUE ...]

--output is a folder for annotated images, FILE.json or FILE.csv. A file that is no image is
reported and the rest goes on; the exit status is then 1.
"""

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed
# fvcore scripts losses that nothing here uses, and torch would say so.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)

from aligndetr.inference import Predictor, find_images, predict_files


def main() -> int:
    """Parse, predict, and say what was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="model_final.pth of a training")
    parser.add_argument("--input", required=True, nargs="+", help="files, patterns, folders")
    parser.add_argument("--output", required=True, help="folder, FILE.json or FILE.csv")
    parser.add_argument("--config-file", help="where the checkpoint holds no config")
    parser.add_argument("--score-threshold", type=float, default=0.3, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=1, help="images at once (%(default)s)")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights")
    parser.add_argument("--device", help="cuda or cpu; default: the GPU if there is one")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="changes of the config")
    args = parser.parse_intermixed_args()
    try:
        files = find_images(args.input)
        predictor = Predictor.from_checkpoint(
            args.checkpoint,
            args.config_file,
            ema=args.ema,
            device=args.device,
            overrides=args.opts,
        )
        broken = predict_files(predictor, files, args.output, args.score_threshold, args.batch_size)
    except (ValueError, OSError) as error:  # what the user can mend needs no traceback
        sys.exit(f"error: {error}")
    print(f"{len(files) - len(broken)} of {len(files)} images: {args.output}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
