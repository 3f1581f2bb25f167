"""Training: the loop, its hooks, its processes, and what is checked before it starts."""

from .bad_steps import NonFiniteGradientError, NonFiniteLossError, NonFiniteStepError
from .build import build_model, build_optimizer, create_ddp_model
from .ema import ModelEMA
from .launch import launch
from .optim import backbone_lr_factor
from .setup import check_run, setup
from .train_loop import do_test, do_train, load_trained, rehearse
from .trainer import Trainer

__all__ = [
    "ModelEMA",
    "NonFiniteGradientError",
    "NonFiniteLossError",
    "NonFiniteStepError",
    "Trainer",
    "backbone_lr_factor",
    "build_model",
    "build_optimizer",
    "check_run",
    "create_ddp_model",
    "do_test",
    "do_train",
    "launch",
    "load_trained",
    "rehearse",
    "setup",
]
