"""Write report.html and report.json: errors, confusion, curves, alignment, best and worst images.

    %(prog)s output/demo/model_final.pth

The source is a checkpoint, whose model then runs over its val data; the folder of a run, for the
results that its last evaluation left; or COCO results (.json) with --ground-truth. KEY=VALUE
changes the config of a checkpoint.
"""

from .parsing import add_model_options, errors_in_one_line, make_parser


def main() -> None:
    """Parse, write the report, and say where it lies and what AP is lost to."""
    parser = make_parser(__doc__)
    parser.add_argument("source", help="checkpoint, folder of a run, or results.json")
    parser.add_argument("--ground-truth", help="COCO json; default: that of the config")
    parser.add_argument("--images", help="folder of the images; default: that of the config")
    parser.add_argument("--output", help="folder to write to; default: beside the source")
    add_model_options(parser)
    args = parser.parse_intermixed_args()
    with errors_in_one_line():
        from aligndetr.analysis import report_of

        print(report_of(**vars(args)))
