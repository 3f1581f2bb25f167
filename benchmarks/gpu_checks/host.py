"""How often the host waits for the device."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from tests.builders import golden_tiny_batch, golden_tiny_model, random_batch


def no_sync_in_the_forward_pass(device: torch.device) -> str:
    """The forward pass never makes the host wait for the device; the criterion does once.

    Without a GPU, evaluation runs on the meta device, which has no numbers that could be read.
    """
    if device.type != "cuda":
        model = golden_tiny_model().to("meta").eval()
        with torch.no_grad():
            images = model.preprocess_image(golden_tiny_batch()[:1])
            model._transform(images.tensor, images.image_sizes)
        return "evaluation on the meta device; training needs a GPU"
    model = golden_tiny_model().to(device)
    first, second = random_batch([(96, 128)] * 2, [3, 2]), golden_tiny_batch()
    with torch.no_grad():
        model.eval()(first[:1])  # starts libraries; another size, so that caches stay cold
        with until_called(model, "inference"), sync_debug_mode("error"):
            model(second[:1])
    model.train()(first)
    counts: list[int] = []
    with counted_syncs(model.criterion, counts), sync_debug_mode("error"):
        model(second)
    assert counts[0] <= 1, f"the criterion made the host wait {counts[0]} times"
    return f"evaluation 0, training 0 and {counts[0]} in the criterion"


@contextlib.contextmanager
def sync_debug_mode(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def until_called(owner: object, name: str) -> Iterator[None]:
    """End the audit when the named method returns: detectron2's post-processing reads boxes."""
    method = getattr(owner, name)

    def last_audited(*args):
        result = method(*args)
        torch.cuda.set_sync_debug_mode("default")
        return result

    setattr(owner, name, last_audited)
    try:
        yield
    finally:
        delattr(owner, name)


@contextlib.contextmanager
def counted_syncs(module: nn.Module, counts: list[int]) -> Iterator[None]:
    """Append to `counts` how often a forward call of `module` makes the host wait."""
    forward = module.forward

    def counting(*args):
        with sync_debug_mode("warn"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = forward(*args)
        counts.append(sum("synchronizing CUDA operation" in str(w.message) for w in caught))
        return result

    module.forward = counting
    try:
        yield
    finally:
        del module.forward
