"""The neck: backbone feature maps to maps of one width, plus coarser ones made from the last."""

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn


class ConvNormAct(nn.Module):
    """Convolution, then norm, then activation; either of the last two may be absent."""

    def __init__(self, conv: nn.Conv2d, norm_layer: nn.Module | None, activation: nn.Module | None):
        super().__init__()
        nn.init.xavier_uniform_(conv.weight)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        self.conv = conv
        self.norm = copy.deepcopy(norm_layer)
        self.activation = copy.deepcopy(activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class ChannelMapper(nn.Module):
    """Map `in_features` of a backbone to `num_outs` maps of `out_channels` channels.

    The first `len(in_features)` outputs are convolutions of the inputs. Each further one halves
    the resolution with a 3x3 convolution: the first of them of the last *input*, the others of the
    output before them.

    Args:
        input_shapes: name -> detectron2 `ShapeSpec` or a mapping with the key "channels" (plain
            values survive a saved config, a ShapeSpec does not). None: the backbone's, which
            `connect` is told before the first use.
        in_features: names to use, from the finest map to the coarsest; None: all of them, in the
            order of `input_shapes`, or by stride where the backbone is asked.
        out_channels: channels of every output.
        kernel_size, stride, bias, groups, dilation: of the convolutions of the inputs.
        norm_layer, activation: copied for each convolution; None leaves it out.
        num_outs: number of outputs, at least `len(in_features)`, which is also the default.
    """

    def __init__(
        self,
        input_shapes: Mapping | None,
        in_features: Sequence[str] | None,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        bias: bool = True,
        groups: int = 1,
        dilation: int = 1,
        norm_layer: nn.Module | None = None,
        activation: nn.Module | None = None,
        num_outs: int | None = None,
    ):
        super().__init__()
        _check_norm(norm_layer, out_channels)
        same = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
        same["padding"] = (kernel_size - 1) // 2 * dilation
        self._conv = {"out_channels": out_channels, "bias": bias, "groups": groups}
        self._same, self._copied = same, (norm_layer, activation)
        self.in_features, self.num_outs = in_features, num_outs
        self.out_channels = out_channels
        self.is_connected = input_shapes is not None
        if input_shapes is not None:
            self._build(input_shapes)

    def connect(self, output_shape: Mapping) -> None:
        """Take channels and strides from a backbone, where `input_shapes` was None.

        Args:
            output_shape: name -> ShapeSpec with `channels` and `stride`, of its `output_shape()`.
        """
        if self.is_connected:
            return
        if self.in_features is None:
            self.in_features = sorted(output_shape, key=lambda name: output_shape[name].stride)
        self._build(output_shape)
        self.is_connected = True

    def _build(self, input_shapes: Mapping) -> None:
        in_features = list(input_shapes if self.in_features is None else self.in_features)
        num_outs = self.num_outs
        unknown = [name for name in in_features if name not in input_shapes]
        if unknown:
            raise ValueError(
                f"`in_features` names {unknown}, but `input_shapes` has {sorted(input_shapes)}; "
                "take the names from the backbone's `out_features`."
            )
        num_outs = len(in_features) if num_outs is None else num_outs
        if num_outs < len(in_features):
            raise ValueError(
                f"`num_outs` (={num_outs}) must be at least the number of in_features "
                f"(={len(in_features)}); drop some of `in_features`."
            )
        self.in_features, self.num_outs = in_features, num_outs
        channels = [_channels(input_shapes[name]) for name in in_features]

        def unit(in_channels: int, **conv) -> ConvNormAct:
            return ConvNormAct(nn.Conv2d(in_channels, **self._conv, **conv), *self._copied)

        self.convs = nn.ModuleList(unit(width, **self._same) for width in channels)
        extra_inputs = [channels[-1]] + [self.out_channels] * (num_outs - len(channels) - 1)
        self.extra_convs = nn.ModuleList(
            unit(width, kernel_size=3, stride=2, padding=1)
            for width in extra_inputs[: num_outs - len(channels)]
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Name -> (B, C_i, H_i, W_i) of the backbone to `num_outs` maps (B, out_channels, H, W)."""
        assert self.in_features is not None, "`connect` was called"
        features = [inputs[name] for name in self.in_features]
        outs = [conv(feature) for conv, feature in zip(self.convs, features, strict=True)]
        coarsest = features[-1]
        for conv in self.extra_convs:
            coarsest = conv(coarsest)
            outs.append(coarsest)
        return outs


def _check_norm(norm_layer: nn.Module | None, out_channels: int) -> None:
    if isinstance(norm_layer, nn.GroupNorm) and norm_layer.num_channels != out_channels:
        raise ValueError(
            f"`model.neck.norm_layer.num_channels` (={norm_layer.num_channels}) must equal "
            f"`model.neck.out_channels` (={out_channels})"
        )


def _channels(shape) -> int:
    return shape["channels"] if isinstance(shape, Mapping) else shape.channels
