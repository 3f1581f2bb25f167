"""The hybrid branch of H-DETR: more queries for the same decoder, in training only.

Jia et al., "DETRs with Hybrid Matching", arXiv:2207.13080. They stand behind all others.
"""

import torch
from torch import Tensor


def with_hybrid_queries(
    attn_mask: Tensor | None, num_others: int, num_hybrid: int, device: torch.device
) -> Tensor:
    """Let hybrid queries see each other only, and no other query see them.

    Args:
        attn_mask: (num_others, num_others) bool, True = may not attend; None: all may.
        num_others: denoising and matching queries.
        num_hybrid: H.

    Returns:
        (num_others + H, num_others + H) bool.
    """
    is_hybrid = torch.arange(num_others + num_hybrid, device=device) >= num_others
    mask = is_hybrid[:, None] != is_hybrid
    if attn_mask is not None:
        mask[:num_others, :num_others] = attn_mask
    return mask
