"""What a transformer's parts must agree on."""

from typing import Any


def check_same_width(encoder: Any, decoder: Any) -> None:
    """Raise a ValueError that names both keys unless the two have the same `embed_dim`."""
    if encoder.embed_dim != decoder.embed_dim:
        raise ValueError(
            f"`model.transformer.encoder.embed_dim` (={encoder.embed_dim}) must equal "
            f"`model.transformer.decoder.embed_dim` (={decoder.embed_dim})"
        )
