"""Predictor: from a checkpoint to detections in three lines.

predictor = Predictor.from_checkpoint("output/demo/model_final.pth")
found = predictor("image.png")
found.save("found.png")
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.structures import Instances
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import nn

from aligndetr.checkpoint import load_weights, local_checkpoint, read_checkpoint
from aligndetr.config import apply_overrides
from aligndetr.data import DetrDatasetMapper
from aligndetr.layers import set_default_backend

from .detections import Detections
from .images import MAX_PIXELS, MAX_TILED_PIXELS, ImageError, ImageLike, load_image
from .restoring import (
    Config,
    as_config,
    averaged_weights,
    check_classes,
    choose_device,
    choose_names,
    find_config,
)
from .tiling import MIN_EDGE, predict_in_tiles

logger = logging.getLogger(__name__)


class Predictor:
    """A detector with all that lies between an image and named boxes.

    Images are prepared by the config's test mapper, so the boxes are those that `--eval-only`
    evaluates.

    Args:
        model: detectron2's convention: list of dicts in, list of {"instances": Instances} out. It
            is put to eval mode.
        mapper: of the test loader.
        class_names: in label order.
        max_pixels: larger images are refused before they are decoded, unless predicted in tiles.
        backend: how deformable attention is computed, as of `train.ms_deform_attn`; None: as the
            process does it.
        config: that all of this was built from; kept for those who want more of it than images.
    """

    def __init__(
        self,
        model: nn.Module,
        mapper: DetrDatasetMapper,
        class_names: Sequence[str],
        max_pixels: int = MAX_PIXELS,
        backend: str | None = None,
        config: DictConfig | None = None,
    ):
        self.model = model.eval()
        self.mapper = mapper
        self.class_names = tuple(class_names)
        self.max_pixels = max_pixels
        self.backend = backend
        self.config = config

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike,
        config: Config | None = None,
        *,
        ema: bool = False,
        class_names: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        overrides: Iterable[str] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> "Predictor":
        """A trained detector.

        Args:
            path: local file, `detectron2://…`, `http(s)://…` or `hf://user/model`; of any kind
                that `aligndetr.checkpoint.read_checkpoint` knows. Reading it runs no code.
            config: file or config of the model; default: the config in the checkpoint, else
                `config.yaml` beside it. A `.py` config is code.
            ema: take the averaged weights, which `train.model_ema.enabled=True` has saved.
            class_names: default: those in the checkpoint; for a model with 80 classes and a config
                that names no data, COCO's.
            device: default: the GPU if there is one, else the CPU.
            overrides: `key=value` for the config, for example `dataset.test_short_edge=640`.
            max_pixels: see `Predictor`.

        Raises:
            FileNotFoundError: no such checkpoint or config.
            CheckpointError: not a checkpoint, of another model or number of classes, without the
                averaged weights asked for; or no config is found.
            ValueError: the config is wrong, or `class_names` are not as many as the classes.
        """
        path = os.fspath(path)
        if "://" not in path and not os.path.isfile(os.path.expanduser(path)):
            raise FileNotFoundError(
                f"checkpoint {path!r} does not exist (looked in {os.path.abspath(path)!r})"
            )
        checkpoint = read_checkpoint(local_checkpoint(path))
        cfg = as_config(config) if config is not None else find_config(checkpoint, path)
        predictor = cls._build(
            cfg, class_names or checkpoint.get("class_names"), device, overrides, max_pixels
        )
        weights = averaged_weights(checkpoint, path) if ema else checkpoint
        check_classes(predictor.model, weights["model"], path)
        load_weights(predictor.model, weights, path, strict=True)
        if not ema and "ema_state" in checkpoint:
            logger.info("%s also holds averaged weights; ema=True takes those", path)
        return predictor

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        overrides: Iterable[str] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> "Predictor":
        """A trained detector of the Hugging Face Hub, or of a folder that `save_pretrained` wrote.

        Args:
            name: `user/model`, or a folder with a model.safetensors. A folder goes first.
            revision: branch, tag or commit on the Hub; default: the newest.
            device, overrides, max_pixels: as of `from_checkpoint`.

        Raises:
            CheckpointError, ValueError: there is no such model, or as of `from_checkpoint`.
        """
        name = os.fspath(name)
        if os.path.isdir(os.path.expanduser(name)):
            path = os.path.join(os.path.expanduser(name), "model.safetensors")
        else:
            path = f"hf://{name}" + (f"@{revision}" if revision else "")
        return cls.from_checkpoint(path, device=device, overrides=overrides, max_pixels=max_pixels)

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        class_names: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        overrides: Iterable[str] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> "Predictor":
        """A detector with random weights, which a warning says; for speed, shapes and tests.

        Args and errors as of `from_checkpoint`.
        """
        cfg = as_config(config)
        logger.warning(
            "The model has random weights, its detections mean nothing; "
            "Predictor.from_checkpoint(path, config) takes trained ones"
        )
        return cls._build(cfg, class_names, device, overrides, max_pixels)

    @classmethod
    def _build(
        cls,
        cfg: DictConfig,
        class_names: Sequence[str] | None,
        device: str | torch.device | None,
        overrides: Iterable[str],
        max_pixels: int,
    ) -> "Predictor":
        cfg = apply_overrides(cfg, overrides)
        if not all(OmegaConf.select(cfg, key) for key in ("model", "dataloader.test.mapper")):
            raise ValueError(
                "the config has no `model` or no `dataloader.test.mapper`, so it cannot say how "
                "to build the model and prepare images; give the config of a training"
            )
        cfg.train.device = str(choose_device(device))
        names = choose_names(cfg, class_names)
        backend = cfg.train.get("ms_deform_attn", "auto")
        set_default_backend(backend, cfg.train.device)  # what needs a compiler is compiled now
        model = instantiate(cfg.model).to(cfg.train.device)
        mapper = instantiate(cfg.dataloader.test.mapper)
        return cls(model, mapper, names, max_pixels, backend, cfg)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def __repr__(self) -> str:
        model = type(self.model).__name__
        return f"Predictor({model}, {len(self.class_names)} classes, {self.device})"

    @overload
    def __call__(
        self,
        images: ImageLike,
        score_threshold: float = ...,
        batch_size: int = ...,
        tile: int | None = ...,
    ) -> Detections: ...

    @overload
    def __call__(
        self,
        images: Sequence[ImageLike],
        score_threshold: float = ...,
        batch_size: int = ...,
        tile: int | None = ...,
    ) -> list[Detections]: ...

    def __call__(
        self,
        images: Any,
        score_threshold: float = 0.3,
        batch_size: int = 1,
        tile: int | None = None,
    ) -> Detections | list[Detections]:
        """Find objects.

        Args:
            images: one image or a list or tuple of them: file names, Pillow images, arrays
                (H, W, 3) uint8 in the order RGB (OpenCV reads BGR: `image[..., ::-1]`), tensors
                (3, H, W). See `load_image`.
            score_threshold: only detections with at least this score; 0 gives all that the model
                selects (`model.select_box_nums_for_evaluation`).
            batch_size: images that go through the model at once. More than 1 is faster on a GPU;
                1 is what `--eval-only` does, equal to the last digit.
            tile: predict an image with a longer edge than this in overlapping tiles of as many
                pixels, for objects that are small in large images and for images of more than
                `max_pixels` (up to `MAX_TILED_PIXELS`). See `aligndetr.inference.tiling`.

        Returns:
            `Detections` for one image, a list of them for a list.

        Raises:
            FileNotFoundError, ImageError, TypeError: see `load_image`.
            ValueError: an empty list, or a threshold, batch size or tile out of its range.
        """
        if not isinstance(images, (list, tuple)):
            return next(self.stream([images], score_threshold, batch_size, tile))
        if not images:
            raise ValueError("no image to predict: the list is empty")
        return list(self.stream(images, score_threshold, batch_size, tile))

    def stream(
        self,
        images: Iterable[ImageLike],
        score_threshold: float = 0.3,
        batch_size: int = 1,
        tile: int | None = None,
        on_error: Callable[[ImageLike, Exception], None] | None = None,
    ) -> Iterator[Detections]:
        """The same for any number of images, one after the other, with one batch in memory.

        Args:
            on_error: called with an image that cannot be used and the error, and the image is left
                out; None raises the error.
        """
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"`score_threshold` (={score_threshold}) must be in [0, 1]")
        if batch_size < 1:
            raise ValueError(f"`batch_size` (={batch_size}) must be at least 1")
        if tile is not None and tile < MIN_EDGE:
            raise ValueError(f"`tile` (={tile}) must be at least {MIN_EDGE} pixels")
        return self._stream(images, score_threshold, batch_size, tile, on_error)

    def _stream(
        self,
        images: Iterable[ImageLike],
        score_threshold: float,
        batch_size: int,
        tile: int | None,
        on_error: Callable[[ImageLike, Exception], None] | None,
    ) -> Iterator[Detections]:
        sources: list[ImageLike] = []
        inputs: list[dict] = []
        for source in images:
            in_tiles = None
            try:
                image = self._load(source, tile)
                if tile is None or max(image.size) <= tile:
                    inputs.append(self._prepare(image.convert("RGB"), source))
                    sources.append(source)
                else:
                    in_tiles = self._predict_in_tiles(
                        image, source, score_threshold, batch_size, tile
                    )
            except (ImageError, OSError, TypeError) as error:
                if on_error is None:
                    raise
                on_error(source, error)
                continue
            if len(inputs) == batch_size or (inputs and in_tiles is not None):
                yield from self._predict(sources, inputs, score_threshold)
                sources, inputs = [], []
            if in_tiles is not None:
                yield in_tiles
        if inputs:
            yield from self._predict(sources, inputs, score_threshold)

    def _load(self, source: ImageLike, tile: int | None) -> Image.Image:
        if tile is None:
            return load_image(source, self.max_pixels)
        return load_image(source, max(self.max_pixels, MAX_TILED_PIXELS), keep_mode=True)

    def _prepare(self, image: Image.Image, source: ImageLike) -> dict:
        try:
            return self.mapper.map_image(image, {})
        except ValueError as error:  # an edge that would have no pixel left
            name = (
                repr(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else "the image"
            )
            raise ImageError(
                f"{name} of {image.width} x {image.height} pixels (width x height) cannot be "
                f"resized as the config says: {error}"
            ) from error

    def _predict_in_tiles(
        self,
        image: Image.Image,
        source: ImageLike,
        score_threshold: float,
        batch_size: int,
        tile: int,
    ) -> Detections:
        def predict(parts: list[Image.Image]) -> list[Detections]:
            inputs = [self._prepare(part, source) for part in parts]
            # The parts themselves are for no one to keep: together they are the image once more.
            return self._predict([source] * len(parts), inputs, score_threshold)

        boxes, scores, class_ids = predict_in_tiles(predict, image, tile, batch_size)
        return self._result(boxes, scores, class_ids, (image.height, image.width), source)

    @torch.no_grad()
    def _predict(
        self, sources: Sequence[ImageLike], inputs: list[dict], score_threshold: float
    ) -> list[Detections]:
        if self.backend is not None:  # another Predictor may have set another one since
            set_default_backend(self.backend, self.device)
        outputs = self.model(inputs)
        return [
            self._detections(output["instances"], source, score_threshold)
            for output, source in zip(outputs, sources, strict=True)
        ]

    def _detections(
        self, instances: Instances, source: ImageLike, score_threshold: float
    ) -> Detections:
        kept = instances.to("cpu")
        kept = kept[kept.scores >= score_threshold]
        return self._result(
            kept.pred_boxes.tensor.float().numpy(),
            kept.scores.float().numpy(),
            kept.pred_classes.numpy(),
            tuple(kept.image_size),
            source,
        )

    def _result(
        self,
        boxes: np.ndarray,
        scores: np.ndarray,
        class_ids: np.ndarray,
        image_size: tuple[int, int],
        source: ImageLike,
    ) -> Detections:
        return Detections(
            boxes=boxes,
            scores=scores,
            class_ids=class_ids,
            class_names=self.class_names,
            image_size=image_size,
            source=source,
            max_pixels=self.max_pixels,
        )
