"""What tools/train_net.py does, on the stand-in; `torchrun torchrun_script.py FOLDER`.

In the first start rank 1 fails after six of eight iterations; where there is one process, it waits
there to be joined by another.
"""

import signal
import sys
from pathlib import Path

from detectron2.utils import comm

from aligndetr.engine import adopt_place, do_train, launch, setup
from tests.engine.stand_in import StandIn, arguments, stand_in_config


class FailsOnce(StandIn):
    calls = 0

    def forward(self, batch):
        self.calls += self.training
        interrupted = Path(sys.argv[1], "interrupted")
        if self.calls == 7 and not interrupted.exists():
            if comm.get_world_size() == 1:
                interrupted.touch()
                signal.pause()  # until torchrun stops it
            elif comm.get_rank() == 1:
                interrupted.touch()
                raise RuntimeError("rank 1 has had enough")
        return super().forward(batch)


def main(args, folder):
    cfg = stand_in_config(folder, eval_period=0)
    cfg.model._target_ = FailsOnce
    setup(cfg, args)
    do_train(cfg, resume=args.resume)


if __name__ == "__main__":
    args = arguments()
    adopt_place(args)
    launch(main, args.num_gpus, args=(args, sys.argv[1]), device="cpu")
