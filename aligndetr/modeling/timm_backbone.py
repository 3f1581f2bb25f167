"""Any feature extractor of timm (PyTorch Image Models) as a backbone of detectron2's kind."""

from collections.abc import Sequence
from types import ModuleType

from detectron2.modeling.backbone import Backbone
from torch import Tensor

from aligndetr.utils.extras import require


class TimmBackbone(Backbone):
    """A model of timm without its head, made with `features_only=True`.

    Channels and strides of its maps are timm's to say; a neck whose `input_shapes` is None takes
    them from here. Models that want images of one size (most ViTs) fail at another.

    Args:
        model_name: as `timm.list_models()` has it, such as "convnext_tiny".
        out_indices: which of the model's maps, from the finest to the coarsest.
        drop_path_rate: stochastic depth; 0 leaves the model's own.
        freeze_batch_norm: batch norms keep the statistics that they came with: for pretrained
            models that have any, since a few images of a detector say little.

    Its weights are random. Those of timm are loaded as any others, by `train.init_checkpoint`: a
    file, or https://huggingface.co/timm/NAME/resolve/main/model.safetensors. So a trained model
    can be built where there is no network.

    Raises:
        MissingExtraError: timm is not installed.
        ValueError: it has no such model, or `out_indices` do not rise or are not among its maps.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (1, 2, 3),
        drop_path_rate: float = 0.0,
        freeze_batch_norm: bool = False,
    ):
        super().__init__()
        timm = import_timm()
        _check_name(timm, model_name)
        options = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        out_indices = tuple(out_indices)
        _check_rising(out_indices)
        try:
            self.body = timm.create_model(
                model_name, features_only=True, out_indices=out_indices, **options
            )
        except (AssertionError, IndexError, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"timm cannot make {model_name!r} with out_indices {list(out_indices)}: "
                f"{str(error) or type(error).__name__}"
            ) from error
        if freeze_batch_norm:
            self.body = timm.layers.freeze_batch_norm_2d(self.body)
        self._channels_last = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")
        info = self.body.feature_info
        self._out_features = [f"stage{index}" for index in out_indices]
        channels, strides = info.channels(), info.reduction()
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))

    @property
    def size_divisibility(self) -> int:
        """Images are padded to multiples of the coarsest stride: a cell at the border that is
        dropped would move all others."""
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to name -> (B, C, h, w)."""
        maps = self.body(images)
        if self._channels_last:
            maps = [feature.permute(0, 3, 1, 2) for feature in maps]
        return dict(zip(self._out_features, maps, strict=True))


def import_timm() -> ModuleType:
    """timm, or a MissingExtraError that says how to get it."""
    return require("timm", "timm", "this backbone")


def _check_rising(out_indices: tuple[int, ...]) -> None:
    # timm gives maps from fine to coarse, and their widths in the order that was asked for.
    if out_indices != tuple(sorted({index for index in out_indices if index >= 0})):
        raise ValueError(
            f"`out_indices` (={list(out_indices)}) must be 0 or more and rise, as in [1, 2, 3]"
        )


def _check_name(timm, model_name: str) -> None:
    # "hf-hub:user/model" and "local-dir:..." load what the author of a config chose.
    if not timm.is_model(model_name) or ":" in model_name:
        known = timm.list_models(f"*{model_name.partition('.')[0][:6]}*")[:5]
        raise ValueError(
            f"`model_name` (={model_name!r}) is no model of timm {timm.__version__}"
            f"{'; similar: ' + ', '.join(known) if known else ''}. `timm.list_models()` has all"
        )
