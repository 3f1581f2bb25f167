"""Write the demo's data set of trees in aerial images (COCO layout).

python tools/prepare_demo_data.py [--root datasets/trees] [--wheel deepforest-2.1.0-*.whl]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

from aligndetr.data.demo import prepare_trees, summarise_trees


def main() -> None:
    """Prepare the data, or find it complete, and say where it lies and what it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="datasets/trees", help="folder to write (%(default)s)")
    parser.add_argument("--wheel", help="deepforest's wheel, where pip cannot download it")
    args = parser.parse_args()
    try:
        written = prepare_trees(args.root, args.wheel)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.root}: {'written' if written else 'already there and complete'}")
    for split, found in summarise_trees(args.root).items():
        print(
            f"  {split + '/':7} {found.images:3} tiles, {found.images_with_trees} with trees; "
            f"{found.boxes} boxes, {found.crowd_regions} crowd regions; "
            f"annotations/instances_{split}.json"
        )


if __name__ == "__main__":
    main()
