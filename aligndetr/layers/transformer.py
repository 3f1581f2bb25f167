"""A transformer layer written as an order of operations, and a stack of such layers."""

import copy
import inspect
from collections.abc import Sequence

from torch import Tensor, nn

from .recompute import recompute

OPERATIONS = ("self_attn", "cross_attn", "norm", "ffn")
ATTENTIONS = ("self_attn", "cross_attn")


class BaseTransformerLayer(nn.Module):
    """Attention, feed-forward and norm modules, run in the given order.

    An order that begins with "norm" is a pre-norm layer: residuals then bypass the norms
    (Xiong et al., "On Layer Normalization in the Transformer Architecture"). Attention and
    feed-forward modules add the residual themselves.

    Args:
        attn: one attention module, copied for each attention in the order, or a list with
            one for each. Called as `attn(query, key, value, identity, ...)`.
        ffn: copied for each "ffn" in the order. Called as `ffn(query, identity)`.
        norm: copied for each "norm" in the order.
        operation_order: of "self_attn", "cross_attn", "norm" and "ffn", with at least one
            attention; ("self_attn", "norm", "ffn", "norm") for example.

    Raises:
        ValueError: unknown operation, no attention, or a list `attn` of another length.
    """

    def __init__(
        self,
        attn: nn.Module | Sequence[nn.Module],
        ffn: nn.Module,
        norm: nn.Module,
        operation_order: Sequence[str],
    ):
        super().__init__()
        self.operation_order = tuple(operation_order)
        unknown = sorted(set(self.operation_order) - set(OPERATIONS))
        if unknown:
            raise ValueError(f"unknown operations {unknown}; choose from {list(OPERATIONS)}")
        self.pre_norm = self.operation_order[:1] == ("norm",)
        self.num_attn = sum(map(self.operation_order.count, ATTENTIONS))
        self.attentions = nn.ModuleList(_one_each(attn, self.num_attn, self.operation_order))
        self.ffns = _copies(ffn, self.operation_order.count("ffn"))
        self.norms = _copies(norm, self.operation_order.count("norm"))
        self.embed_dim = self.attentions[0].embed_dim
        self._accepted = [_argument_names(attention) for attention in self.attentions]

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_masks: Tensor | Sequence[Tensor | None] | None = None,
        query_key_padding_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **attn_kwargs,
    ) -> Tensor:
        """Run the operations. Tensors are laid out as the attention modules want them.

        Args:
            query, query_pos: what is refined, and its position.
            key, value, key_pos: what cross-attention attends to.
            attn_masks: one per attention in the order, None for no mask; a single tensor
                serves all of them. bool, True = blocked.
            query_key_padding_mask: (B, Q) bool, True = padding, for self-attention.
            key_padding_mask: (B, N) bool, True = padding, for cross-attention.
            **attn_kwargs: what single attention modules need besides, such as
                `reference_points` and `spatial_shapes`. Each module gets those it names in
                its `forward`.

        Returns:
            The refined query, same shape.

        Raises:
            TypeError: a keyword, mask or key position that no module concerned would read.
            ValueError: `attn_masks` of another length than there are attentions.
        """
        masks = self._mask_per_attention(attn_masks)
        self._require_readers(masks, key_pos, attn_kwargs)
        attentions = iter(zip(self.attentions, self._accepted, masks, strict=True))
        ffns, norms = iter(self.ffns), iter(self.norms)
        stream = query  # the residual of a pre-norm layer
        for operation in self.operation_order:
            if operation == "norm":
                query = next(norms)(query)
                continue
            identity = stream if self.pre_norm else None
            if operation == "ffn":
                query = next(ffns)(query, identity)
            else:
                attention, accepted, mask = next(attentions)
                offered = {"query_pos": query_pos, "attn_mask": mask, **attn_kwargs}
                if operation == "self_attn":
                    source = (query, query)
                    offered |= {"key_pos": query_pos, "key_padding_mask": query_key_padding_mask}
                else:
                    source = (key, value)
                    offered |= {"key_pos": key_pos, "key_padding_mask": key_padding_mask}
                read = {name: offered[name] for name in offered if _takes(accepted, name)}
                query = attention(query, *source, identity, **read)
            stream = query
        return query

    def _mask_per_attention(self, attn_masks) -> list[Tensor | None]:
        if attn_masks is None or isinstance(attn_masks, Tensor):
            return [attn_masks] * self.num_attn
        if len(attn_masks) != self.num_attn:
            raise ValueError(
                f"`attn_masks` has {len(attn_masks)} entries but the layer has {self.num_attn} "
                f"attentions, in the order {self.operation_order}; give one each, None for none"
            )
        return list(attn_masks)

    def _require_readers(self, masks, key_pos, attn_kwargs: dict) -> None:
        """Refuse what would have no effect: most likely a typo or a wrong module."""
        for name in attn_kwargs:
            if not any(_takes(accepted, name) for accepted in self._accepted):
                modules = sorted({type(attention).__name__ for attention in self.attentions})
                raise TypeError(f"no attention of this layer takes `{name}`; it has {modules}")
        kinds = [operation for operation in self.operation_order if operation in ATTENTIONS]
        for index, (kind, accepted) in enumerate(zip(kinds, self._accepted, strict=True)):
            module = f"{type(self.attentions[index]).__name__} (attention {index}, {kind})"
            if masks[index] is not None and not _takes(accepted, "attn_mask"):
                raise TypeError(f"{module} takes no attention mask; pass None for it")
            if kind == "cross_attn" and key_pos is not None and not _takes(accepted, "key_pos"):
                raise TypeError(f"{module} takes no key position; leave out `key_pos`")


class TransformerLayerSequence(nn.Module):
    """Base of encoders and decoders: holds `layers`; a subclass says how to run them.

    Args:
        transformer_layers: one layer, copied `num_layers` times (copies start with equal
            weights: initialise after building), or a list of `num_layers` layers.
        num_layers: number of layers.
        use_checkpoint: `run_layer` keeps only the inputs of a layer in training, see `recompute`.
    """

    def __init__(
        self,
        transformer_layers: nn.Module | Sequence[nn.Module],
        num_layers: int,
        use_checkpoint: bool = False,
    ):
        super().__init__()
        self.num_layers = num_layers
        self.use_checkpoint = use_checkpoint
        if isinstance(transformer_layers, nn.Module):
            self.layers = _copies(transformer_layers, num_layers)
        else:
            if len(transformer_layers) != num_layers:
                raise ValueError(
                    f"`transformer_layers` holds {len(transformer_layers)} layers but "
                    f"`num_layers` is {num_layers}"
                )
            self.layers = nn.ModuleList(transformer_layers)

    def run_layer(self, layer: nn.Module, *args, **kwargs) -> Tensor:
        """`layer(*args, **kwargs)`, recomputed in the backward pass with `use_checkpoint`."""
        if self.use_checkpoint:
            return recompute(layer, *args, **kwargs)
        return layer(*args, **kwargs)


def _one_each(attn, num_attn: int, operation_order: tuple[str, ...]) -> list[nn.Module]:
    if num_attn == 0:
        raise ValueError(f"`operation_order` {operation_order} has no attention in it")
    if isinstance(attn, nn.Module):
        return list(_copies(attn, num_attn))
    if len(attn) != num_attn:
        raise ValueError(
            f"`attn` holds {len(attn)} modules but `operation_order` {operation_order} has "
            f"{num_attn} attentions"
        )
    return list(attn)


def _copies(module: nn.Module, count: int) -> nn.ModuleList:
    return nn.ModuleList(copy.deepcopy(module) for _ in range(count))


def _argument_names(attention: nn.Module) -> frozenset[str] | None:
    """Names that `attention.forward` takes; None if it takes any."""
    parameters = inspect.signature(attention.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


def _takes(accepted: frozenset[str] | None, name: str) -> bool:
    return accepted is None or name in accepted
