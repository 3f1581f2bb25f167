"""A training on two machines of one process each, of which one is killed at its end.

`torchrun --nnodes 2 machine_script.py FOLDER`, or `launch` calls `train_and_lose_one`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from detectron2.utils import comm

from aligndetr.engine import adopt_place, curves, do_train, launch, setup
from tests.engine.stand_in import arguments, stand_in_config


def train_and_lose_one(args, folder):
    curves.plot_curves = lambda metrics, picture: None  # as in conftest.py
    rank = comm.get_rank()
    found = {
        "machine": args.machine_rank,
        "local": [comm.get_local_rank(), comm.get_local_size()],
        "all": comm.all_gather(f"rank {rank}"),
    }
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))
    cfg = stand_in_config(folder, eval_period=0)
    setup(cfg, args)
    do_train(cfg)
    comm.synchronize()
    if rank == 1:
        Path(folder, "killed").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()  # rank 0 would wait here for ever


if __name__ == "__main__":
    args = arguments()
    adopt_place(args)
    launch(train_and_lose_one, args.num_gpus, args=(args, sys.argv[1]), device="cpu")
