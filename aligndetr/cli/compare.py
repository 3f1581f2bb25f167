"""Compare runs with the first of them: AP and how sure the differences are, curves, configs.

    %(prog)s output/demo output/demo --output output/comparison

Each is the folder of a run (train.output_dir), above of one and the same. Writes compare.html and
compare.json.
"""

from .parsing import errors_in_one_line, make_parser


def main() -> None:
    """Parse, compare, and print the table of AP."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders, what to compare with first"
    )
    parser.add_argument("--output", default=".", help="folder to write to (%(default)s)")
    parser.add_argument("--ground-truth", help="COCO json; default: that of the configs")
    parser.add_argument(
        "--resamples", type=int, default=1000, help="of the images, for confidence (%(default)s)"
    )
    args = parser.parse_args()
    with errors_in_one_line():
        from aligndetr.analysis import comparison_of

        print(comparison_of(**vars(args)))
