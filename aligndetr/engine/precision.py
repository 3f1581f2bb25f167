"""Which half precision autocast computes in."""

import torch

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def check_amp_dtype(name: str) -> None:
    """Raise a ValueError unless `train.amp.dtype` is one that autocast may compute in."""
    if name not in AMP_DTYPES:
        raise ValueError(f"`train.amp.dtype` (={name!r}) must be one of {sorted(AMP_DTYPES)}")


def autocast_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`, for a model on `device`.

    Raises:
        ValueError: unknown, or bfloat16 on a GPU that only emulates it, slower than float32.
    """
    check_amp_dtype(name)
    if name == "bfloat16" and device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            raise ValueError(
                f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}) has "
                "no arithmetic in bfloat16; set train.amp.dtype=float16"
            )
    return AMP_DTYPES[name]
