"""Train all combinations of config files and values, and print one table.

python tools/sweep.py --output output/NAME --config-file A.py B.py \
    train.seed=0,1,2 model.criterion.tau=1.5,3 train.max_iter=1000

A key with several values makes a run for each; runs that differ in train.seed alone are averaged.
The same command once more goes on where it was interrupted, and leaves finished runs alone. With
--cluster slurm each run is a job (needs submitit: pip install 'aligndetr[slurm]').
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # needs no install
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

from aligndetr import sweeps

RAW = argparse.RawDescriptionHelpFormatter


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--config-file", nargs="+", required=True, metavar="FILE [KEY=VALUE]")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs' folders")
    parser.add_argument("--metrics", default="", help="bbox/AP,bbox/APs,...: the table's columns")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of each run")
    parser.add_argument("--cluster", choices=["slurm", "local"], help="each run as a job")
    parser.add_argument("--hours", type=float, default=24.0, help="of a job, before it is put back")
    parser.add_argument("--slurm", default="", help="options of sbatch: partition=gpu,account=me")
    parser.add_argument("--alignment", action="store_true", help="measure scores against IoUs too")
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to train")
    args = parser.parse_args()
    runs = sweeps.expand_words(args.config_file)
    unfinished = sweeps.prepare(runs, args.output)
    print(f"{len(runs)} runs, {len(runs) - len(unfinished)} of them finished")
    if args.dry_run:
        print(*(run.name for run in unfinished), sep="\n")
        return 0
    common = (unfinished, args.output, ROOT / "tools/train_net.py")
    if args.cluster:
        slurm = sweeps.Slurm.of(args.slurm, args.cluster, args.num_gpus, args.hours)
        failed = sweeps.run_on_slurm(*common, slurm)
    else:
        failed = sweeps.run_one_by_one(*common, ["--num-gpus", str(args.num_gpus)])
    if args.alignment:
        sweeps.measure_alignment(runs, args.output, ROOT / "tools/analyze_alignment.py")
    print(sweeps.write_results(runs, args.output, failed, args.metrics.split(",")))
    return int(bool(failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
