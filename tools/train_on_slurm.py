r"""Train on a SLURM cluster: what follows `--` are the arguments of tools/train_net.py.

    %(prog)s --nodes 2 --processes-per-node 8 --hours 24 \
        --slurm partition=gpu account=me -- --config-file projects/aligndetr/configs/NAME.py

Before the time is up the run saves a checkpoint, goes back into the queue and then resumes.
Needs submitit: pip install 'aligndetr[slurm]'.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # needs no install
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

from aligndetr.cli.parsing import make_parser
from aligndetr.engine.slurm_job import submit


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--processes-per-node", type=int, default=8, help="one per GPU")
    parser.add_argument("--gpus-per-node", type=int, help="default: one per process; 0: CPU only")
    parser.add_argument("--cpus-per-process", type=int, default=8)
    parser.add_argument("--hours", type=float, default=24.0, help="before it is put back")
    parser.add_argument("--requeues", type=int, default=20, help="how often that may happen")
    parser.add_argument("--slurm", nargs="*", default=[], help="options of sbatch, KEY=VALUE")
    parser.add_argument("--logs", type=Path, default=Path("output/slurm"))
    parser.add_argument("--cluster", choices=["slurm", "local"], help="default: what there is")
    parser.add_argument("train_args", nargs="+")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    command = [sys.executable, str(ROOT / "tools/train_net.py"), *args.train_args]
    gpus = args.processes_per_node if args.gpus_per_node is None else args.gpus_per_node
    try:
        job = submit(
            command, args.logs, cluster=args.cluster, nodes=args.nodes,
            processes_per_node=args.processes_per_node, gpus_per_node=gpus,
            cpus_per_process=args.cpus_per_process, hours=args.hours, requeues=args.requeues,
            slurm=dict(option.split("=", 1) for option in args.slurm),
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(f"Job {job.job_id}; what its first process prints: {job.paths.stdout}")
