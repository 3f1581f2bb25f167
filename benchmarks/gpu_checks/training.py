"""A few steps of training: the same bits twice, mixed precision, several processes."""

import tempfile

import torch
from torch.nn.parallel import DistributedDataParallel

from aligndetr.engine.launch import launch
from benchmarks.gpu_checks.common import Skip, train, turn_tf32_off
from tests.builders import golden_tiny_batch, golden_tiny_model, random_batch


def deterministic_step(device: torch.device) -> str:
    """With deterministic algorithms, two steps from one state give the same bits."""
    gradients = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            torch.manual_seed(0)
            model = golden_tiny_model().to(device).train()
            sum(model(golden_tiny_batch()).values()).backward()
            gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    return f"{len(gradients[0])} gradients equal"


def mixed_precision_bf16(device: torch.device) -> str:
    return mixed_precision(device, torch.bfloat16)


def mixed_precision_fp16(device: torch.device) -> str:
    return mixed_precision(device, torch.float16)


def mixed_precision(device: torch.device, dtype: torch.dtype) -> str:
    """Twenty steps under autocast: finite, and the loss falls."""
    model = golden_tiny_model().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    totals = train(model, optimizer, golden_tiny_batch(), 20, amp_dtype=dtype)
    assert torch.tensor(totals).isfinite().all(), totals
    last = sum(totals[-5:]) / 5
    assert last < 0.9 * totals[0], f"the loss went from {totals[0]:.2f} to {last:.2f} only"
    return f"loss {totals[0]:.2f} -> {last:.2f}"


def two_processes_equal_one(device: torch.device) -> str:
    """DDP over NCCL (Gloo on the CPU): two processes of two images as one with all four."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        raise Skip("needs two GPUs, this machine has one")
    with tempfile.TemporaryDirectory() as folder:
        launch(ddp_rank, 2, args=(device.type, folder), device=device.type)
        ranks = [torch.load(f"{folder}/{rank}.pth", weights_only=True) for rank in range(2)]
    model = golden_tiny_model(dn_number=0).to(device).train()
    sum(model(four_images()).values()).backward()
    want = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    scale = max(gradient.abs().max().item() for gradient in want.values())
    for name, gradient in want.items():
        for rank in ranks:
            torch.testing.assert_close(rank[name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)
    return (
        f"{len(want)} gradients equal, {torch.distributed.get_default_backend_for_device(device)}"
    )


def four_images() -> list[dict]:
    return random_batch([(64, 96)] * 4, [3, 1, 2, 4])


def ddp_rank(device_type: str, folder: str) -> None:
    turn_tf32_off()
    rank = torch.distributed.get_rank()
    on_gpu = device_type == "cuda"
    model = golden_tiny_model(dn_number=0).to(f"cuda:{rank}" if on_gpu else "cpu").train()
    model = DistributedDataParallel(model, device_ids=[rank] if on_gpu else None)
    sum(model(four_images()[2 * rank : 2 * rank + 2]).values()).backward()
    gradients = {n: p.grad.cpu() for n, p in model.module.named_parameters() if p.grad is not None}
    torch.save(gradients, f"{folder}/{rank}.pth")
