"""Write report.html and report.json: errors, confusion, curves, alignment, best and worst images.

python tools/report.py output/demo                        # the results that a run has left
python tools/report.py output/demo/model_final.pth        # run the model, layer by layer
python tools/report.py results.json --ground-truth instances_val.json [--images val]
"""

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed
# fvcore scripts losses that nothing here uses, and torch would say so.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)

from aligndetr.analysis import report_of


def main() -> None:
    """Parse, write the report, and say where it lies and what AP is lost to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="folder of a run, a checkpoint, or COCO results as json")
    parser.add_argument("--ground-truth", help="COCO json; default: that of the run's config")
    parser.add_argument("--images", help="folder of the images; default: that of the config")
    parser.add_argument("--output", help="folder to write to; default: beside the source")
    parser.add_argument("--config-file", help="for a checkpoint that holds no config")
    parser.add_argument("--device", help="cuda or cpu; default: the GPU if there is one")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="changes of the config")
    args = parser.parse_intermixed_args()
    try:
        print(report_of(**vars(args)))
    except (ValueError, OSError) as error:  # what the user can mend needs no traceback
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
