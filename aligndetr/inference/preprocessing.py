"""What is done to an image before the network, in plain values that others can follow."""

from typing import Any

from omegaconf import DictConfig, OmegaConf


def preprocessing(cfg: DictConfig) -> dict[str, Any]:
    """Of the test loader and the model of a config; what it does not say is left out.

    Returns:
        "channel_order" ("RGB" or "BGR"), "short_edge" and "max_size" (pixels, aspect ratio kept),
        then "pixel_mean" and "pixel_std" per channel, for values of 0 to 255.
    """
    steps = OmegaConf.select(cfg, "dataloader.test.mapper.augmentation") or []
    resize = next((step for step in steps if "short_edge_length" in step), {})
    found = {
        "channel_order": OmegaConf.select(cfg, "dataloader.test.mapper.img_format"),
        "short_edge": resize.get("short_edge_length"),
        "max_size": resize.get("max_size"),
        "pixel_mean": OmegaConf.select(cfg, "model.pixel_mean"),
        "pixel_std": OmegaConf.select(cfg, "model.pixel_std"),
    }
    return {key: _plain(value) for key, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
