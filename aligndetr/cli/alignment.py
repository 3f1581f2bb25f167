"""Measure how well the scores of a model's layers say how good its boxes are.

    %(prog)s output/demo/model_final.pth

Writes alignment.json and alignment.png; docs/alignment.md says what the numbers mean. KEY=VALUE
changes the config.
"""

from .parsing import add_model_options, errors_in_one_line, make_parser


def main() -> None:
    """Parse, measure, and print the table of layers."""
    parser = make_parser(__doc__)
    parser.add_argument("checkpoint", help="model_final.pth of a training")
    parser.add_argument("--output", help="folder; default: MODEL_report beside the checkpoint")
    add_model_options(parser)
    args = parser.parse_intermixed_args()
    with errors_in_one_line():
        from aligndetr.analysis import alignment_of

        print(alignment_of(**vars(args)))
