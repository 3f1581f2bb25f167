"""Stacks of linear layers: `MLP` for heads, `FFN` for the transformer's feed-forward step."""

from typing import Any

import torch
from torch import Tensor, nn

from .token_blocks import feed_forward_in_blocks

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where torch keeps what a user, pruning or weight_norm asks a module to run as well."""


class MLP(nn.Module):
    """Linear layers with ReLU between them, none after the last.

    Args:
        input_dim, hidden_dim, output_dim: features before, between and after the layers.
        num_layers: number of linear layers, at least 1; with 1, `hidden_dim` is not used.
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"MLP needs at least one layer, got `num_layers`={num_layers}")
        dims = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(dims[i], dims[i + 1]) for i in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) to (..., output_dim)."""
        *hidden_layers, last = self.layers
        for layer in hidden_layers:
            x = layer(x).relu()
        return last(x)


class FFN(nn.Module):
    """Feed-forward step of a transformer layer, residual included.

    Args:
        embed_dim: features of the input.
        feedforward_dim: features between the linear layers.
        output_dim: features of the output; None means `embed_dim`.
        num_fcs: number of linear layers, at least 2.
        activation: module after every linear layer but the last; None means ReLU.
        ffn_drop: dropout probability after every linear layer.
        fc_bias: whether the linear layers have a bias.
        add_identity: add the input (or the `identity` given to `forward`) to the result.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        feedforward_dim: int = 1024,
        output_dim: int | None = None,
        num_fcs: int = 2,
        activation: nn.Module | None = None,
        ffn_drop: float = 0.0,
        fc_bias: bool = True,
        add_identity: bool = True,
    ):
        super().__init__()
        output_dim = embed_dim if output_dim is None else output_dim
        if num_fcs < 2:
            raise ValueError(f"FFN needs at least two linear layers, got `num_fcs`={num_fcs}")
        if add_identity and output_dim != embed_dim:
            raise ValueError(
                f"FFN cannot add its input of `embed_dim`={embed_dim} to an output of "
                f"`output_dim`={output_dim}; make them equal or set `add_identity=False`"
            )
        activation = nn.ReLU() if activation is None else activation
        self.embed_dim = embed_dim
        self.feedforward_dim = feedforward_dim
        self.add_identity = add_identity

        # The nesting is part of the state_dict keys: layers.0.0, ..., layers.{num_fcs - 1}.
        hidden_layers = [
            nn.Sequential(
                nn.Linear(embed_dim if i == 0 else feedforward_dim, feedforward_dim, bias=fc_bias),
                activation,
                nn.Dropout(ffn_drop),
            )
            for i in range(num_fcs - 1)
        ]
        last = nn.Linear(feedforward_dim, output_dim, bias=fc_bias)
        self.layers = nn.Sequential(*hidden_layers, last, nn.Dropout(ffn_drop))

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """(..., embed_dim) to (..., output_dim); `identity`: the residual, None means `x`."""
        out = self._in_blocks(x) if self._can_be_in_blocks(x) else self.layers(x)
        if not self.add_identity:
            return out
        return out + (x if identity is None else identity)

    def _in_blocks(self, x: Tensor) -> Tensor:
        parts: Any = self.layers
        first, last = parts[0][0], parts[1]
        return feed_forward_in_blocks(x, first.weight, first.bias, last.weight, last.bias)

    def _can_be_in_blocks(self, x: Tensor) -> bool:
        """On a CPU, two plain layers with ReLU, unless a graph is being made or dtypes mixed.

        Nor where a hook waits to be run: in blocks no module is called.
        """
        if x.device.type != "cpu" or x.numel() == 0 or x.dim() < 2:
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        if torch.is_autocast_enabled("cpu") or len(self.layers) != 3:
            return False
        parts: Any = self.layers
        (first, activation, dropout), last, _ = parts
        is_plain = type(first) is type(last) is nn.Linear and type(activation) is nn.ReLU
        return is_plain and not (self.training and dropout.p > 0) and not _has_hooks(self.layers)


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(part, hooks) for part in module.modules() for hooks in HOOKS)
