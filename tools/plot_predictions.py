r"""Draw what a trained model finds on val images beside the ground truth, to predictions.png.

    %(prog)s --config-file output/demo/config.yaml \
        train.init_checkpoint=output/demo/model_final.pth

KEY=VALUE changes the config.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

from detectron2.config import instantiate

from aligndetr.cli.parsing import errors_in_one_line
from aligndetr.cli.train import parse_run
from aligndetr.config import apply_overrides, load_config
from aligndetr.engine import check_run, load_trained
from aligndetr.engine.setup import dataset_class_names
from aligndetr.inference import write_predictions

OUTPUTS = {
    "checkpoints": "model_*.pth",
    "config": "config.yaml",
    "metrics": "metrics.json",
    "TensorBoard": "events.out.tfevents.*",
    "log": "log.txt",
    "curves": "curves.png",
    "predictions": "predictions.png",
}


def main() -> None:
    """Draw the sheet, then say where everything lies that the run has left."""
    args = parse_run(__doc__, eval_only=True)
    with errors_in_one_line():
        cfg = apply_overrides(load_config(args.config_file), args.opts)
        check_run(cfg, args)
        names = dataset_class_names(cfg, train=False)
        *_, model = load_trained(cfg).values()  # the averaged weights, where there are any
        output_dir = Path(cfg.train.output_dir)
        records = instantiate(cfg.dataloader.test.dataset)
        mapper = instantiate(cfg.dataloader.test.mapper)
        write_predictions(model, records, mapper, names, output_dir / "predictions.png")
    for label, pattern in OUTPUTS.items():
        for path in sorted(output_dir.glob(pattern)):
            print(f"{label:12} {path}")


if __name__ == "__main__":
    main()
