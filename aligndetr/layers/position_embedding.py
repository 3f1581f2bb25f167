"""Sine embeddings of positions: of every cell of a feature map, and of given coordinates.

Both write a coordinate x as F features sin(x / t_0), cos(x / t_0), sin(x / t_2), cos(x / t_2),
... with t_i = temperature ** (i / F) for even i ("Attention Is All You Need", section 3.5; two
coordinates one after the other as in DETR, appendix A.4).
"""

import math

import torch
from torch import Tensor, nn


class PositionEmbeddingSine(nn.Module):
    """Embedding of each cell's row and column, counted over the cells that are not padding.

    Args:
        num_pos_feats: features F per axis; the embedding has 2 F channels.
        temperature: see the top of this file.
        scale: the largest normalised coordinate. Read only with `normalize`.
        eps: keeps the division finite where a row or column is all padding.
        offset: added to the cell count, which starts at 1, before normalising: -0.5 puts
            coordinates at cell centres. Read only with `normalize`.
        normalize: divide by the number of valid cells, so that coordinates end at `scale`.
    """

    def __init__(
        self,
        num_pos_feats: int = 64,
        temperature: int = 10000,
        scale: float = 2 * math.pi,
        eps: float = 1e-6,
        offset: float = 0.0,
        normalize: bool = False,
    ):
        super().__init__()
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature
        self.scale = scale
        self.eps = eps
        self.offset = offset
        self.normalize = normalize

    def forward(self, mask: Tensor) -> Tensor:
        """Embed a padding mask.

        Args:
            mask: (B, H, W) bool, True = padding.

        Returns:
            (B, 2 F, H, W) float32: F channels for y, then F for x.
        """
        valid = ~mask
        # Counted in integers: on a GPU a sum of floats along an axis is not deterministic.
        y = valid.cumsum(1, dtype=torch.int32).float()
        x = valid.cumsum(2, dtype=torch.int32).float()
        if self.normalize:
            y = (y + self.offset) / (y[:, -1:, :] + self.eps) * self.scale
            x = (x + self.offset) / (x[:, :, -1:] + self.eps) * self.scale
        embedding = _sine_embedding(
            torch.stack([y, x], dim=-1), self.num_pos_feats, self.temperature
        )
        return embedding.permute(0, 3, 1, 2)


def get_sine_pos_embed(
    pos_tensor: Tensor,
    num_pos_feats: int = 128,
    temperature: int = 10000,
    exchange_xy: bool = True,
) -> Tensor:
    """Embed coordinates, of reference points or boxes for example.

    Args:
        pos_tensor: (..., n), n coordinates in [0, 1]: (x, y), or (cx, cy, w, h).
        num_pos_feats: features F per coordinate.
        temperature: see the top of this file.
        exchange_xy: put the features of the second coordinate before those of the first:
            y before x, as `PositionEmbeddingSine` has them. Needs n >= 2.

    Returns:
        (..., n * F), float32 or the dtype of `pos_tensor` if that is wider.
    """
    if exchange_xy:
        x, y, *others = pos_tensor.split(1, dim=-1)
        pos_tensor = torch.cat([y, x, *others], dim=-1)
    return _sine_embedding(pos_tensor * (2 * math.pi), num_pos_feats, temperature)


def _sine_embedding(coordinates: Tensor, num_feats: int, temperature: float) -> Tensor:
    """(..., n) coordinates to (..., n * num_feats) features, one coordinate after the other."""
    # Sine and cosine alternate and share a wavelength in pairs: exponents 0, 0, 2, 2, ...
    # (Of an odd number of features the last cosine is dropped.)
    count = num_feats + num_feats % 2
    exponent = torch.arange(count, dtype=torch.float32, device=coordinates.device)
    exponent = 2 * torch.div(exponent, 2, rounding_mode="floor") / num_feats
    phase = coordinates[..., None] / temperature**exponent
    waves = torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1)
    return waves.flatten(-2)[..., :num_feats].flatten(-2)
