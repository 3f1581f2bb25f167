"""Predictor: from a checkpoint to detections in three lines.

predictor = Predictor.from_checkpoint("output/demo/model_final.pth")
found = predictor("image.png")
found.save("found.png")
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from omegaconf import DictConfig, OmegaConf
from torch import nn

from aligndetr.checkpoint import CheckpointError, load_weights, local_checkpoint, read_checkpoint
from aligndetr.config import apply_overrides, config_from_yaml, load_config
from aligndetr.data import DetrDatasetMapper
from aligndetr.layers import set_default_backend

from .detections import Detections
from .images import MAX_PIXELS, ImageError, ImageLike, load_image

logger = logging.getLogger(__name__)

Config = str | os.PathLike | DictConfig


class Predictor:
    """A detector with all that lies between an image and named boxes.

    Images are prepared by the config's test mapper, so the boxes are those that `--eval-only`
    evaluates.

    Args:
        model: detectron2's convention: list of dicts in, list of {"instances": Instances} out. It
            is put to eval mode.
        mapper: of the test loader.
        class_names: in label order.
        max_pixels: larger images are refused before they are decoded.
    """

    def __init__(
        self,
        model: nn.Module,
        mapper: DetrDatasetMapper,
        class_names: Sequence[str],
        max_pixels: int = MAX_PIXELS,
    ):
        self.model = model.eval().requires_grad_(False)
        self.mapper = mapper
        self.class_names = tuple(class_names)
        self.max_pixels = max_pixels

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
            path: local file, `detectron2://…` or `http(s)://…`. Reading it runs no code.
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
        cfg = _load_config(config) if config is not None else _find_config(checkpoint, path)
        predictor = cls._build(
            cfg, class_names or checkpoint.get("class_names"), device, overrides, max_pixels
        )
        weights = _averaged(checkpoint, path) if ema else checkpoint
        _check_classes(predictor.model, weights["model"], path)
        load_weights(predictor.model, weights, path, strict=True)
        if not ema and "ema_state" in checkpoint:
            logger.info("%s also holds averaged weights; ema=True takes those", path)
        return predictor

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
        cfg = _load_config(config)
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
        cfg.train.device = str(_choose_device(device))
        names = _choose_names(cfg, class_names)
        set_default_backend(cfg.train.get("ms_deform_attn", "auto"), cfg.train.device)
        model = instantiate(cfg.model).to(cfg.train.device)
        return cls(model, instantiate(cfg.dataloader.test.mapper), names, max_pixels)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def __repr__(self) -> str:
        model = type(self.model).__name__
        return f"Predictor({model}, {len(self.class_names)} classes, {self.device})"

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        score_threshold: float = 0.3,
        batch_size: int = 1,
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

        Returns:
            `Detections` for one image, a list of them for a list.

        Raises:
            FileNotFoundError, ImageError, TypeError: see `load_image`.
            ValueError: an empty list, or a threshold or batch size out of its range.
        """
        if not isinstance(images, (list, tuple)):
            return next(self.stream([images], score_threshold))
        if not images:
            raise ValueError("no image to predict: the list is empty")
        return list(self.stream(images, score_threshold, batch_size))

    def stream(
        self, images: Iterable[ImageLike], score_threshold: float = 0.3, batch_size: int = 1
    ) -> Iterator[Detections]:
        """The same for any number of images, one after the other, with one batch in memory."""
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"`score_threshold` (={score_threshold}) must be in [0, 1]")
        if batch_size < 1:
            raise ValueError(f"`batch_size` (={batch_size}) must be at least 1")
        return self._stream(images, score_threshold, batch_size)

    def _stream(
        self, images: Iterable[ImageLike], score_threshold: float, batch_size: int
    ) -> Iterator[Detections]:
        sources: list[ImageLike] = []
        inputs: list[dict] = []
        for source in images:
            sources.append(source)
            inputs.append(self._prepare(source))
            if len(inputs) == batch_size:
                yield from self._predict(sources, inputs, score_threshold)
                sources, inputs = [], []
        if inputs:
            yield from self._predict(sources, inputs, score_threshold)

    def _prepare(self, source: ImageLike) -> dict:
        image = load_image(source, self.max_pixels)
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

    @torch.no_grad()
    def _predict(
        self, sources: Sequence[ImageLike], inputs: list[dict], score_threshold: float
    ) -> list[Detections]:
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
        return Detections(
            boxes=kept.pred_boxes.tensor.float().numpy(),
            scores=kept.scores.float().numpy(),
            class_ids=kept.pred_classes.numpy(),
            class_names=self.class_names,
            image_size=tuple(kept.image_size),
            source=source,
            max_pixels=self.max_pixels,
        )


def _load_config(config: Config) -> DictConfig:
    return config.copy() if isinstance(config, DictConfig) else load_config(config)


def _find_config(checkpoint: dict, path: str) -> DictConfig:
    """The config in a checkpoint, else the one beside it."""
    if isinstance(checkpoint.get("config"), str):
        return config_from_yaml(checkpoint["config"], source=f"the config in {path}")
    beside = Path(path).expanduser().parent / "config.yaml"
    if beside.is_file():
        return load_config(beside)
    raise CheckpointError(
        f"checkpoint {path!r} holds no config, and there is no config.yaml beside it; name the "
        "config that the model was trained with: from_checkpoint(path, config=…)"
    )


def _averaged(checkpoint: dict, path: str) -> dict:
    if "ema_state" not in checkpoint:
        raise CheckpointError(
            f"checkpoint {path!r} holds no averaged weights ('ema_state'); set ema=False"
        )
    return {"model": checkpoint["ema_state"]}


def _choose_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"`device` (={device!r}) is not a device: {error}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"`device` is {device!r}, but this machine has no GPU that torch can use; "
            'set device="cpu"'
        )
    return chosen


def _choose_names(cfg: DictConfig, names: Sequence[str] | None) -> list[str]:
    num_classes = OmegaConf.select(cfg, "model.num_classes")
    if names is None:
        coco = MetadataCatalog.get("coco_2017_val").thing_classes
        own_data = any(OmegaConf.select(cfg, f"dataset.{key}") for key in ("root", "val_json"))
        if num_classes == len(coco) and not own_data:
            return list(coco)
        names = [f"class_{number}" for number in range(num_classes or 0)]
        logger.warning("No class names are known; give `class_names`, or read class_0, class_1, …")
    names = list(names)
    if num_classes is not None and len(names) != num_classes:
        raise ValueError(
            f"there are {len(names)} class names, but the model has {num_classes} classes; give "
            f"the {num_classes} names that it was trained on, in their order, by `class_names`"
        )
    return names


def _check_classes(model: nn.Module, weights: dict[str, torch.Tensor], path: str) -> None:
    """Raise if the weights differ from the model in their number of classes and nothing else."""
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    differ = [name for name in ours if ours[name] != theirs.get(name, ours[name])]
    lengths = {(theirs[name][:1], ours[name][:1]) for name in differ}
    same_otherwise = all(ours[name][1:] == theirs[name][1:] for name in differ)
    if len(lengths) == 1 and same_otherwise:
        ((found,), (expected,)) = lengths.pop()
        if expected == getattr(model, "num_classes", None):
            raise CheckpointError(
                f"checkpoint {path!r} was trained on {found} classes, but the config says "
                f"{expected}; add overrides=['model.num_classes={found}'], or give the config of "
                "its training"
            )
