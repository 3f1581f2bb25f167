"""Activations: what a forward pass of R-50 keeps for the backward pass, with and without
`use_checkpoint` and mixed precision.

    python benchmarks/activations.py

Bytes of all tensors that autograd holds after the losses of one image are computed, parameters
left out. Losses with recomputation must equal those without, or the run ends without a figure.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

import aligndetr.quiet  # noqa: F401 (before detectron2)

# isort: split

import torch
from omegaconf import OmegaConf

from benchmarks.model import R50, build_model, load_config, random_batch
from benchmarks.timing import Report, command_line

PARTS = ("backbone", "transformer.encoder", "transformer.decoder")


def kept_bytes(parts: tuple[str, ...], amp: bool, size: tuple[int, int]) -> tuple[int, float]:
    """Bytes kept, and the total loss, of one image of `size` (h, w) with `parts` recomputed."""
    cfg = load_config(R50, "cpu")
    for part in parts:
        OmegaConf.update(cfg.model, f"{part}.use_checkpoint", True)
    model = build_model(cfg).train()
    weights = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(0)  # the noise of the denoising queries
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=amp),
    ):
        total = sum(model(random_batch([size], cfg.model.num_classes)).values())
    return sum(kept.values()), total.item()


def main() -> None:
    args = command_line(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    report = Report(args.threads)
    size = (160, 224) if args.quick else (480, 640)
    for amp in (False, True):
        expected = None
        for parts in ((), *((part,) for part in PARTS), PARTS):
            num_bytes, loss = kept_bytes(parts, amp, size)
            expected = expected or (num_bytes, loss)
            assert loss == expected[1], f"recomputing {parts} changes the loss"
            report.note(
                f"{'bfloat16' if amp else 'float32'}, 1 x {size[0]} x {size[1]}",
                recomputed=" ".join(parts) or "nothing",
                mib=num_bytes / 2**20,
                of_all=num_bytes / expected[0],
            )
    report.save(args.json)


if __name__ == "__main__":
    main()
