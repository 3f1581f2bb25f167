"""Count parameters, FLOPs and activations of a config's model, as a whole and part by part.

    %(prog)s --config-file aligndetr_demo --size 320 320

One multiply-add is one FLOP. KEY=VALUE changes the config, for example model.num_classes=3.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

from aligndetr.cli.parsing import config_file, errors_in_one_line, make_parser
from aligndetr.inference import Predictor
from aligndetr.profiling import count_model


def main() -> None:
    """Build the model with random weights on the CPU, count, and print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="NAME", type=config_file)
    parser.add_argument(
        "--size", type=int, nargs=2, default=[800, 1333], metavar=("HEIGHT", "WIDTH"),
        help="of the image as the model gets it (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--depth", type=int, default=2, help="of the table (%(default)s)")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="changes of the config")
    args = parser.parse_intermixed_args()
    with errors_in_one_line():
        model = Predictor.from_config(args.config_file, device="cpu", overrides=args.opts).model
        counts = count_model(model, *args.size)
    print(counts.table(args.depth))
    print(f"\nimage of {args.size[0]} x {args.size[1]} (height x width)")
    print(f"parameters   {counts.parameters():,}")
    print(f"FLOPs        {counts.flops():,} ({counts.flops() / 1e9:.1f} G multiply-adds)")
    for operator, flops in counts.flops_by_operator().items():
        print(f"  {operator:30} {flops:,}")
    print(f"activations  {counts.activations():,}")


if __name__ == "__main__":
    main()
