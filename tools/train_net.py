"""Train or evaluate a config.

python tools/train_net.py --config-file projects/aligndetr/configs/NAME.py [--num-gpus N]
    [--resume] [--eval-only] [KEY=VALUE ...]

The same under `torchrun --nproc-per-node N` or `srun`, without --num-gpus.
"""

import argparse
import os
import sys
import warnings

# fvcore scripts losses that nothing here uses, and torch would say so in every process.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
# Threads that wait spinning, as by default, starve each other on a CPU that has other work.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # needs no install

from detectron2.engine import default_argument_parser

from aligndetr import engine
from aligndetr.config import apply_overrides, load_config


def main(args: argparse.Namespace) -> None:
    cfg = apply_overrides(load_config(args.config_file), args.opts)
    engine.setup(cfg, args)
    if args.eval_only:
        engine.do_test(cfg)
    else:
        engine.do_train(cfg, resume=args.resume)


if __name__ == "__main__":
    parser = default_argument_parser(epilog=__doc__)
    parser.set_defaults(dist_url="auto")
    args = parser.parse_args()
    try:  # here as well, so that an error shows once and not once per process
        engine.adopt_place(args)
        cfg = apply_overrides(load_config(args.config_file), args.opts)
        engine.rehearse(cfg, args)
    except (ValueError, OSError) as error:  # what the user can mend needs no traceback
        sys.exit(f"error: {error}" if engine.speaks_for_machine() else 1)
    engine.launch(
        main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (args,),
        device=cfg.train.device,
    )  # fmt: skip
