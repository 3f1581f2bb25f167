"""Measure how well the scores of a model's layers say how good its boxes are.

python tools/analyze_alignment.py output/demo/model_final.pth [--output DIR] [KEY=VALUE ...]

Writes alignment.json and alignment.png; docs/alignment.md says what the numbers mean.
"""

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed
# fvcore scripts losses that nothing here uses, and torch would say so.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)

from aligndetr.analysis import alignment_of


def main() -> None:
    """Parse, measure, and print the table of layers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="model_final.pth of a training")
    parser.add_argument("--output", help="folder; default: MODEL_report beside the checkpoint")
    parser.add_argument("--config-file", help="for a checkpoint that holds no config")
    parser.add_argument("--device", help="cuda or cpu; default: the GPU if there is one")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="changes of the config")
    args = parser.parse_intermixed_args()
    try:
        print(alignment_of(**vars(args)))
    except (ValueError, OSError) as error:  # what the user can mend needs no traceback
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
