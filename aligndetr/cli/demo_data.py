"""Write the demo's data set of trees in aerial images (COCO layout).

    %(prog)s --root datasets/trees

Where pip cannot download deepforest==2.1.0, --wheel names its file.
"""

import sys

from .parsing import make_parser


def main() -> None:
    """Prepare the data, or find it complete, and say where it lies and what it holds."""

    parser = make_parser(__doc__)
    parser.add_argument("--root", default="datasets/trees", help="folder to write (%(default)s)")
    parser.add_argument("--wheel", help="deepforest's wheel, where pip cannot download it")
    args = parser.parse_args()
    from aligndetr.data.demo import prepare_trees, summarise_trees

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
