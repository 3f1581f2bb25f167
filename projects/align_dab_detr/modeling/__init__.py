"""DAB-DETR with Align-DETR's criterion, from parts of the `aligndetr` library."""

from .align_dab_detr import AlignDABDETR
from .dab_transformer import (
    DabDetrTransformer,
    DabDetrTransformerDecoder,
    DabDetrTransformerEncoder,
)

__all__ = [
    "AlignDABDETR",
    "DabDetrTransformer",
    "DabDetrTransformerDecoder",
    "DabDetrTransformerEncoder",
]
