"""Train or evaluate a config: a file, or one that is shipped, by its bare name.

    %(prog)s --config-file aligndetr_demo train.fast_dev_run.enabled=True

KEY=VALUE changes the config. The same under torchrun and srun, without --num-gpus.
"""

import argparse
import os
import sys
import time

from .parsing import config_file, make_parser

# Before torch is imported: threads that wait spinning, as by default, starve each other on a CPU
# that has other work.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def main(doc: str | None = __doc__, eval_only: bool = False) -> None:
    """Check the run here, so that an error shows once and not once per process; then start it."""
    args = parse_run(doc, eval_only)
    from aligndetr import engine
    from aligndetr.config import apply_overrides, load_config

    try:
        engine.adopt_place(args)
        cfg = apply_overrides(load_config(args.config_file), args.opts)
        engine.rehearse(cfg, args)
        folder = engine.lock_output_dir(cfg.train.output_dir, args)
    except (ValueError, OSError) as error:  # what the user can mend needs no traceback
        sys.exit(f"error: {error}" if engine.speaks_for_machine() else 1)
    with folder:
        engine.launch(
            run, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (args,),
            device=cfg.train.device,
        )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Train or evaluate, in every process of the run; then report on it."""
    from aligndetr import engine
    from aligndetr.analysis import report_of_finished_run
    from aligndetr.config import apply_overrides, load_config

    start = time.time()
    cfg = apply_overrides(load_config(args.config_file), args.opts)
    engine.setup(cfg, args)
    if args.eval_only:
        engine.do_test(cfg)
    else:
        engine.do_train(cfg, resume=args.resume)
    report_of_finished_run(cfg, since=start)


def parse_run(doc: str | None, eval_only: bool = False) -> argparse.Namespace:
    """The options of detectron2's `default_argument_parser`; `doc` is the help.

    Args:
        eval_only: of a program that trains nothing: what concerns training is no option.
    """
    parser = make_parser(doc)
    parser.add_argument("--config-file", metavar="NAME", type=config_file, default="")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes per machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of the first machine")
    if eval_only:
        parser.set_defaults(eval_only=True, resume=False)
    else:
        parser.add_argument("--resume", action="store_true", help="go on where the run stopped")
        parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    # All that follows the first one, so that an option among them is an error that says so.
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY=VALUE")
    return parser.parse_args()
