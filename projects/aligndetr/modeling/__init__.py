"""Align-DETR: the model of the paper, from parts of the `aligndetr` library."""

from .align_detr import AlignDETR
from .decoder import TransformerDecoder
from .encoder import TransformerEncoder
from .transformer import Transformer

__all__ = ["AlignDETR", "Transformer", "TransformerDecoder", "TransformerEncoder"]
