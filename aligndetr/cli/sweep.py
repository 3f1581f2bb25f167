"""Train all combinations of configs and values, and print one table.

    %(prog)s --output output/sweep --config-file aligndetr_demo \\
        model.criterion.tau=1.5,3 train.seed=0 train.fast_dev_run.enabled=True

A key with several values makes a run for each; runs that differ in train.seed alone are averaged.
The same command once more goes on where it was interrupted, and leaves finished runs alone. With
--cluster slurm each run is a job (needs submitit: pip install 'aligndetr[slurm]').
"""

import os
import sys
from pathlib import Path

from .parsing import config_file, errors_in_one_line, make_parser

PROGRAM = [sys.executable, "-m", "aligndetr"]


def main() -> int:
    """Parse, train what is not finished, and print the table; 1 if a run failed."""
    parser = make_parser(__doc__)
    parser.add_argument("--config-file", nargs="+", required=True, metavar="NAME [KEY=VALUE]")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs' folders")
    parser.add_argument("--metrics", default="", help="bbox/AP,bbox/APs,...: the table's columns")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of each run")
    parser.add_argument("--cluster", choices=["slurm", "local"], help="each run as a job")
    parser.add_argument("--hours", type=float, default=24.0, help="of a job, before it is put back")
    parser.add_argument("--slurm", default="", help="options of sbatch: partition=gpu,account=me")
    parser.add_argument("--alignment", action="store_true", help="measure scores against IoUs too")
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to train")
    args = parser.parse_args()
    # Each run is this program again, also where it is not installed.
    root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    with errors_in_one_line():
        from aligndetr import sweeps

        runs = sweeps.expand_words(args.config_file, config_file)
        unfinished = sweeps.prepare(runs, args.output)
        print(f"{len(runs)} runs, {len(runs) - len(unfinished)} of them finished")
        if args.dry_run:
            print(*(run.name for run in unfinished), sep="\n")
            return 0
        common = (unfinished, args.output, [*PROGRAM, "train"])
        if args.cluster:
            slurm = sweeps.Slurm.of(args.slurm, args.cluster, args.num_gpus, args.hours)
            failed = sweeps.run_on_slurm(*common, slurm)
        else:
            failed = sweeps.run_one_by_one(*common, ["--num-gpus", str(args.num_gpus)])
        if args.alignment:
            sweeps.measure_alignment(runs, args.output, [*PROGRAM, "alignment"])
        print(sweeps.write_results(runs, args.output, failed, args.metrics.split(",")))
    return int(bool(failed))
