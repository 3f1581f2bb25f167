"""Training: the loop, its hooks, its processes, and what is checked before it starts."""

from .bad_steps import NonFiniteGradientError, NonFiniteLossError, NonFiniteStepError
from .build import build_model, build_optimizer, create_ddp_model
from .ema import ModelEMA
from .launch import launch
from .optim import backbone_lr_factor
from .output_lock import lock_output_dir
from .place import adopt_place, speaks_for_machine
from .schedule import cosine_lr, multi_step_lr
from .setup import check_run, setup
from .supervision import RankFailedError
from .train_loop import do_test, do_train, load_trained, rehearse
from .trainer import Trainer

__all__ = [
    "ModelEMA",
    "NonFiniteGradientError",
    "NonFiniteLossError",
    "NonFiniteStepError",
    "RankFailedError",
    "Trainer",
    "adopt_place",
    "backbone_lr_factor",
    "build_model",
    "build_optimizer",
    "check_run",
    "cosine_lr",
    "create_ddp_model",
    "do_test",
    "do_train",
    "launch",
    "load_trained",
    "lock_output_dir",
    "multi_step_lr",
    "rehearse",
    "setup",
    "speaks_for_machine",
]
