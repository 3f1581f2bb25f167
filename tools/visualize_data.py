r"""Draw the images that a training sees, before and after augmentation, with their objects.

    %(prog)s --config-file aligndetr_demo --output train_data.png

--output is a .png for one sheet, or a folder for a file per image. KEY=VALUE changes the config,
for example dataset.root=/path/to/data, or train.seed=1 for other images.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

from aligndetr.analysis.train_samples import write_train_samples
from aligndetr.cli.parsing import config_file, errors_in_one_line, make_parser
from aligndetr.config import apply_overrides, load_config


def main() -> None:
    """Load the config, draw, and say what was written."""
    parser = make_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="NAME", type=config_file)
    parser.add_argument("--output", required=True, help="FILE.png or a folder")
    parser.add_argument("--num-images", type=int, default=12, help="(%(default)s)")
    parser.add_argument("--edge", type=int, default=480, help="of a picture, px (%(default)s)")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="changes of the config")
    args = parser.parse_intermixed_args()
    with errors_in_one_line():
        cfg = apply_overrides(load_config(args.config_file), args.opts)
        for path in write_train_samples(cfg, args.output, args.num_images, args.edge):
            print(path)


if __name__ == "__main__":
    main()
