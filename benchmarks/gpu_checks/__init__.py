"""The checks that `benchmarks/gpu_check.py` runs: each takes the device and returns what it saw.

A check asserts; what this machine cannot check raises `common.Skip`.
Tolerances are for CUDA without TF32: other kernels sum in another order, which 20 steps of training
in float32 carry on; in float64 little of that is left.
"""
