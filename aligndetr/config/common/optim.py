"""AdamW as DETR models are trained: no weight decay on norms, a tenth of the rate in the backbone.

Whoever builds it sets `optimizer.params.model` first.
"""

from detectron2.config import LazyCall as L
from detectron2.solver import get_default_optimizer_params
from torch.optim import AdamW

from aligndetr.engine.optim import backbone_lr_factor

optimizer = L(AdamW)(
    params=L(get_default_optimizer_params)(
        base_lr="${..lr}",  # that the factors of `lr_factor_func` multiply
        weight_decay_norm=0.0,  # weight decay of the parameters of norms
        lr_factor_func=L(backbone_lr_factor)(factor=0.1),
    ),
    lr=1e-4,  # for 16 images per step
    betas=[0.9, 0.999],  # decay of the averages of gradients and of their squares
    weight_decay=1e-4,  # of all parameters but those of norms
    fused=True,  # one pass over the weights, on CPU and CUDA alike
)
