"""What tools/train_net.py does, on the stand-in; `torchrun torchrun_script.py FOLDER`.

In the first start rank 1 fails after six of eight iterations.
"""

import os
import sys

from detectron2.utils import comm

from aligndetr.engine import adopt_place, do_train, launch, setup
from tests.engine.stand_in import StandIn, arguments, stand_in_config


class FailsOnce(StandIn):
    calls = 0

    def forward(self, batch):
        self.calls += self.training
        first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if self.calls == 7 and first_start and comm.get_rank() == 1:
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
