"""What the checks share."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from aligndetr.layers import multi_scale_deformable_attn
from aligndetr.layers.ms_deform_attn.functional import choose_backend, set_default_backend

Check = Callable[[torch.device], str]
DTYPES = {"f32": torch.float32, "f64": torch.float64}


class Skip(Exception):
    """This machine lacks what the check is about; the message says what."""


def turn_tf32_off() -> None:
    """In this process; it would cost comparisons three digits."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def with_triton(check: Check) -> Check:
    """`check` with Triton as the model's deformable attention."""

    @functools.wraps(check)
    def checked(device: torch.device) -> str:
        if device.type == "cpu":
            raise Skip("on the CPU Triton is interpreted: a model would take hours")
        if not runs("triton", device):
            raise Skip(refusal("triton", device))
        set_default_backend("triton", device)
        try:
            return check(device)
        finally:
            set_default_backend("auto", device)

    return checked


def evaluate(model: nn.Module, x: dict) -> tuple[Tensor, Tensor, object]:
    """Logits, boxes and detections of one image."""
    kept, inference = [], model.inference
    model.inference = lambda *args: (kept.append(args), inference(*args))[1]
    try:
        with torch.no_grad():
            (result,) = model([x])
    finally:
        del model.inference
    return *kept[0][:2], result["instances"]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: list[dict],
    steps: int,
    amp_dtype: torch.dtype | None = None,
) -> list[float]:
    """Train on one batch, gradients clipped to 0.1; the total loss before each step."""
    device, totals = model.device, []
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16)
    for _ in range(steps):
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
            total = sum(model(batch).values())
        totals.append(total.item())
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    return totals


def runs(backend: str, device: torch.device) -> bool:
    return not refusal(backend, device)


def refusal(backend: str, device: torch.device) -> str:
    """Why `backend` cannot run on `device`; empty if it can."""
    try:
        choose_backend(backend, device)
    except ValueError as error:
        return str(error)
    return ""


def attention(
    backend: str, shapes: list[tuple[int, int]], inputs: list[Tensor], grad_out: Tensor | None
) -> dict[str, Tensor]:
    """Output, and gradients unless `grad_out` is None, under the names of the golden numbers."""
    inputs = [x.detach().requires_grad_(grad_out is not None) for x in inputs]
    out = multi_scale_deformable_attn(inputs[0], shapes, *inputs[1:], backend=backend)
    if grad_out is None:
        return {"output": out}
    gradients = torch.autograd.grad(out, inputs, grad_out)
    names = ("output", "grad_value", "grad_loc", "grad_weights")
    return dict(zip(names, (out.detach(), *gradients), strict=True))


def to(nested, device: torch.device):
    """All tensors in dicts, lists and tuples on `device`."""
    if isinstance(nested, Tensor):
        return nested.to(device)
    if isinstance(nested, dict):
        return {key: to(value, device) for key, value in nested.items()}
    if isinstance(nested, (list, tuple)):
        return type(nested)(to(value, device) for value in nested)
    return nested
