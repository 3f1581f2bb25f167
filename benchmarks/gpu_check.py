"""What has to hold on a machine with a GPU, in one command: `make gpu-check`.

    python benchmarks/gpu_check.py [--device cuda] [--quick]

Golden numbers on the GPU, Triton against the reference, host syncs, mixed precision, exact resume,
DDP over NCCL, the benchmarks of attention, criterion and model, and a table at the end. Runs from
a checkout: the golden numbers lie in tests/. Exit code 0: all checks passed or were skipped for the
reason given; 1: one failed; 2: there is no such device. `--device cpu` runs what can do without a
GPU.

Last run: one H200, torch 2.11, 2026-11-28, without the last two benchmarks; docs/performance.md has
what it found.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

# Read when CUDA starts; without it cuBLAS refuses to run under use_deterministic_algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

import aligndetr.quiet  # noqa: F401 (before detectron2)

# isort: split

import torch

from aligndetr.layers.ms_deform_attn.functional import BACKEND_VARIABLE
from benchmarks.gpu_checks import attention, engine, golden, host, speed, training
from benchmarks.gpu_checks.common import Check, Skip, turn_tf32_off, with_triton

QUICK = {
    "golden evaluation": golden.golden_evaluation,
    "golden evaluation, Triton": with_triton(golden.golden_evaluation),
    "golden deformable attention": golden.golden_attention,
    "golden criterion": golden.golden_criterion,
    "Triton against the reference": attention.triton_against_reference,
    "deterministic step": training.deterministic_step,
    "deterministic step, Triton": with_triton(training.deterministic_step),
    "waits of the host": host.no_sync_in_the_forward_pass,
    "waits of the host, Triton": with_triton(host.no_sync_in_the_forward_pass),
}
THOROUGH = {
    "golden training": golden.golden_trajectory,
    "golden training, Triton": with_triton(golden.golden_trajectory),
    "bfloat16 training": training.mixed_precision_bf16,
    "bfloat16 training, Triton": with_triton(training.mixed_precision_bf16),
    "float16 training": training.mixed_precision_fp16,
    "float16 training, Triton": with_triton(training.mixed_precision_fp16),
    "exact resume of a run": engine.exact_resume,
    "two processes equal one": training.two_processes_equal_one,
    "speed of deformable attention": attention.attention_benchmark,
    "speed of the criterion": speed.criterion_benchmark,
    "speed of the model": speed.model_benchmark,
}


class Result(NamedTuple):
    name: str
    status: str  # "pass", "FAIL" or "skip"
    seconds: float
    detail: str


def run_check(name: str, check: Check, device: torch.device) -> Result:
    """Whatever a check raises is its result: the other checks still run."""
    start = time.perf_counter()
    try:
        status, detail = "pass", check(device)
    except Skip as reason:
        status, detail = "skip", str(reason)
    except Exception as error:
        traceback.print_exc()
        status, detail = "FAIL", f"{type(error).__name__}: {error}".splitlines()[0]
    return Result(name, status, time.perf_counter() - start, detail)


def run_all(to_run: Mapping[str, Check], device: torch.device) -> list[Result]:
    results = []
    for name, check in to_run.items():
        print(f"-- {name}", flush=True)
        results.append(run_check(name, check, device))
    return results


def print_table(results: list[Result]) -> None:
    width = max(len(result.name) for result in results)
    for name, status, seconds, detail in results:
        print(f"{name:{width}}  {status}  {seconds:6.1f} s  {detail}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="no training and no benchmark")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            f"error: no GPU: torch {torch.__version__} finds no CUDA device. "
            "Nothing was checked; `--device cpu` runs what can do without one.",
            file=sys.stderr,
        )
        return 2
    device = torch.device(args.device)
    os.environ.pop(BACKEND_VARIABLE, None)  # each check says itself what it wants
    if args.device == "cuda":
        turn_tf32_off()
    results = run_all(QUICK if args.quick else QUICK | THOROUGH, device)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"\n{name}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    print_table(results)
    return int(any(result.status == "FAIL" for result in results))


if __name__ == "__main__":
    sys.exit(main())
