from .optim import backbone_lr_factor

__all__ = ["backbone_lr_factor"]
