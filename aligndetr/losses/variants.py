"""What a matched entry costs and what all others cost: IA-BCE, and losses it is compared with.

With p = sigmoid(logit), IoU of the predicted box with its object, w the weight of the candidate's
rank (1 for the best) and BCE(p, t) = -t log p - (1 - t) log(1 - p):

    variant        a matched entry                                  every other
    ia_bce         BCE(p, w t),              t = p^alpha IoU^(1-alpha)   p^gamma BCE(p, 0)
    ia_bce_focal   |w t - p|^gamma BCE(p, w t),                   t as above   p^gamma BCE(p, 0)
    focal          w 0.25 (1 - p)^gamma BCE(p, 1)                        0.75 p^gamma BCE(p, 0)
    varifocal      w t BCE(p, w t),          t = max(0.01, IoU)          0.75 p^gamma BCE(p, 0)

`ia_bce` is the loss of Align-DETR as published in its first version. `ia_bce_focal` puts a focal
factor in front of its positives; the authors' second version is said to do so, but its formulas
were not available to us: it is a reconstruction, not their loss. `focal` is Lin et al.,
arXiv:1708.02002; `varifocal` Zhang et al., arXiv:2008.13367. No gradient reaches t, which in
`ia_bce` is never below 0.01 either; it does reach p where it stands in a factor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, softplus

# Both papers weigh negatives 0.75 on COCO: the focal loss as 1 - 0.25, varifocal as its alpha.
FOCAL_POSITIVES, FOCAL_NEGATIVES = 0.25, 0.75


def positive_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of each of the (N,) matched entries with its target in [0, 1]: (N,)."""
    return -target * logsigmoid(logits) - (1 - target) * logsigmoid(-logits)


def focal_factor(logits: Tensor, target: Tensor | float, gamma: float) -> Tensor:
    """|target - p|^gamma of each of the (N,) entries.

    Its gradient stays finite where p reaches the target: 0 there.
    """
    distance = (target - logits.sigmoid()).abs()
    reached = distance == 0  # d/dx x^gamma is infinite there for a gamma below 1
    power = torch.where(reached, 1.0, distance) ** gamma
    return torch.where(reached, float(gamma == 0), power)


@dataclass(frozen=True)
class Variant:
    """One line of the table above."""

    cost: Callable[[Tensor, Tensor, Tensor | float, float], Tensor]
    negative_weight: float = 1.0
    uses_score: bool = True

    def score_share(self, alpha: float) -> float:
        """The exponent of p in the quality; the IoU has what is left of 1."""
        return alpha if self.uses_score else 0.0

    def positives(
        self, logits: Tensor, quality: Tensor, rank_weight: Tensor | float, gamma: float
    ) -> Tensor:
        """Cost of the (N,) matched entries, (N,), from their qualities t (N,) and weights w."""
        return self.cost(logits, quality, rank_weight, gamma)

    def negatives(self, logits: Tensor, position: tuple[Tensor, ...], gamma: float) -> Tensor:
        """Summed cost of all entries of `logits` but those at `position`: 0-d."""
        return self.negative_weight * negative_loss(logits, position, gamma)


def _ia_bce(logits, quality, rank_weight, _gamma):
    return positive_loss(logits, quality * rank_weight)


def _ia_bce_focal(logits, quality, rank_weight, gamma):
    target = quality * rank_weight
    return focal_factor(logits, target, gamma) * positive_loss(logits, target)


def _focal(logits, _quality, rank_weight, gamma):
    factor = FOCAL_POSITIVES * rank_weight
    return factor * focal_factor(logits, 1.0, gamma) * -logsigmoid(logits)


def _varifocal(logits, quality, rank_weight, _gamma):
    target = quality * rank_weight
    return target * positive_loss(logits, target)


VARIANTS = {
    "ia_bce": Variant(_ia_bce),
    "ia_bce_focal": Variant(_ia_bce_focal),
    "focal": Variant(_focal, FOCAL_NEGATIVES),
    "varifocal": Variant(_varifocal, FOCAL_NEGATIVES, uses_score=False),
}


def negative_loss(logits: Tensor, position: tuple[Tensor, ...], gamma: float) -> Tensor:
    """Sum of -p^gamma * log(1 - p) over all entries of `logits` but those at `position`: 0-d.

    Differentiable once.
    """
    return _NegativeLoss.apply(logits, gamma, *position)


class _NegativeLoss(torch.autograd.Function):
    """Value and derivative in one go: their terms are the same, and this is most of the loss.

    With s = softplus(x) = -log(1 - p): d/dx p^gamma s = p^gamma (gamma (1 - p) s + p).
    """

    @staticmethod
    def forward(ctx, logits, gamma, *position):
        p = logits.sigmoid()
        # Beyond the threshold softplus(x) is x: exact only where exp(-x) is lost in x.
        s = softplus(logits, threshold=40)
        weight = p**gamma
        # Not `weight[position] = 0`: a number is copied to a GPU, which makes the host wait.
        weight.index_put_(position, weight.new_zeros(()))
        loss = (weight * s).sum()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(s.mul_(1 - p).mul_(gamma).add_(p).mul_(weight))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (derivative,) = ctx.saved_tensors
        return grad * derivative, None, *[None] * (len(ctx.needs_input_grad) - 2)
