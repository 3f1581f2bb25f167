"""The Triton backend without a GPU: its numbers interpreted, its code for sm_90, its refusals."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aligndetr.layers.ms_deform_attn import functional, triton_backend
from aligndetr.layers.ms_deform_attn.triton_backend import block_sizes, obstacle_to_triton

ROOT = Path(__file__).parents[3]
CHECKS = "tests/layers/ms_deform_attn/check_triton.py"
HEADS, LEVELS, POINTS = 8, 4, 4


def require_triton():
    """The module; skips the test where there is none that the backend would take."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if triton_backend._installed_version() < triton_backend.MIN_VERSION:
        pytest.skip(f"triton {triton.__version__} is too old for the backend")
    return triton


def run_checks(**environment: str) -> None:
    """check_triton.py in a process of its own."""
    require_triton()
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-10_000:] + result.stderr[-2_000:]


def test_kernels_equal_the_reference_in_the_interpreter():
    run_checks(TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_kernels_equal_the_reference_on_a_gpu():
    run_checks(TRITON_INTERPRET="0")


def compile_for_sm_90(kernel, value_type: str, head_dim: int, **options: int):
    """A kernel compiled as the backend would launch it on an H100; needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = {"levels": "*i32"} | dict.fromkeys(("value", "out", "grad_out"), f"*{value_type}")
    sizes = {"M": HEADS, "D": head_dim, "L": LEVELS, "P": POINTS}
    constants = {**sizes, **block_sizes(head_dim), **options}
    signature, constexprs, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], constexprs[position,] = "constexpr", constants[name]
        elif name in ("S", "Q"):
            signature[name] = "i32"
        else:  # tensors start at multiples of 16 bytes
            signature[name] = pointers.get(name, "*fp32")
            attributes[position,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs, attributes)
    num_warps = {"num_warps": triton_backend.NUM_WARPS}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=num_warps)


def resource_usage(compiled, folder: Path) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack and local memory (spills)."""
    import triton

    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    cuobjdump = str(bundled) if bundled.exists() else shutil.which("cuobjdump")
    if cuobjdump is None:
        pytest.skip("neither triton nor the path holds cuobjdump")
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    text = subprocess.check_output([cuobjdump, "-res-usage", str(cubin)], text=True)
    return {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    triton = require_triton()
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: triton does not compile")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
        pytest.skip("triton before 3.3 compiles offline by other calls")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    from aligndetr.layers.ms_deform_attn import triton_kernels

    return triton_kernels


# A thread has 4 of a row's numbers: 128 bits of float32 or 64 bits of half precision.
@pytest.mark.parametrize(
    ("value_type", "width", "head_dim"),
    [("fp32", 4, 32), ("fp32", 4, 24), ("fp16", 2, 32), ("bf16", 2, 32)],
)
@pytest.mark.parametrize("kernel", ["forward", "backward", "backward without atomics"])
def test_machine_code_has_vector_loads_and_no_spills(
    kernels, tmp_path, kernel, head_dim, value_type, width
):
    if kernel == "forward":
        compiled = compile_for_sm_90(kernels.forward_kernel, value_type, head_dim)
    else:
        compiled = compile_for_sm_90(
            kernels.backward_kernel,
            value_type,
            head_dim,
            BLOCK_K=LEVELS * POINTS,
            ADD_TO_VALUE=kernel == "backward",
        )
    ptx = compiled.asm["ptx"]
    rows = 4 if kernel == "forward" else 5  # the corners, and the output's gradient
    assert len(re.findall(rf"ld\.global\S*\.v{width}\.b32", ptx)) == rows
    atomics = re.findall(r"(?:atom|red)\.\S*add\S*", ptx)
    assert len(atomics) == (4 if kernel == "backward" else 0)
    assert all(".v4.f32" in atomic for atomic in atomics), atomics
    usage = resource_usage(compiled, tmp_path)
    assert usage["STACK"] == usage["LOCAL"] == 0
    assert usage["REG"] <= (64 if kernel == "forward" else 96)


@pytest.mark.parametrize(
    ("head_dim", "queries", "features"),
    [(1, 128, 4), (8, 64, 8), (24, 16, 32), (32, 16, 32), (256, 2, 256), (700, 1, 1024)],
)
def test_block_sizes_are_powers_of_two_that_hold_a_row(head_dim, queries, features):
    assert block_sizes(head_dim) == {"BLOCK_Q": queries, "BLOCK_D": features}


def test_refuses_tensors_elsewhere(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "CUDA devices only, the tensors are on cpu" in obstacle_to_triton(torch.device("cpu"))


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (None, r"triton, which is not installed .*pip install triton"),
        ((3, 1), r"triton 3\.2 or newer, 3\.1 is installed"),
    ],
)
def test_refuses_where_triton_is_missing_or_too_old(monkeypatch, version, reason):
    monkeypatch.setattr(triton_backend, "_installed_version", lambda: version)
    assert re.search(reason, obstacle_to_triton(torch.device("cuda")))
    with pytest.raises(ValueError, match=rf"backend 'triton' .*{reason}"):
        functional.choose_backend("triton", torch.device("cuda"))


def test_auto_takes_it_on_cuda_unless_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(triton_backend, "_installed_version", lambda: (3, 8))
    monkeypatch.setattr(triton_backend, "_failure_on", lambda device: None)
    device = torch.device("cuda")
    assert functional.choose_backend("auto", device) == "triton"
    monkeypatch.setattr(functional, "_graph_is_captured", lambda: True)
    assert functional.choose_backend("auto", device) == "reference"


def test_auto_takes_no_sum_in_any_order_where_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(triton_backend, "_installed_version", lambda: None)
    device = torch.device("cuda")
    assert functional.choose_backend("auto", device) == "reference"
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert functional.choose_backend("auto", device) == "deterministic"
