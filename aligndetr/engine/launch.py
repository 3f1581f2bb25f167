"""Starting the processes of a run: one per GPU, or several on the CPU.

detectron2's `launch` takes NCCL wherever a GPU is present; here the device decides, so that
`train.device=cpu` runs on any machine.
"""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

TIMEOUT = timedelta(minutes=30)


def launch(
    main_func: Callable,
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
    device: str = "cuda",
    timeout: timedelta = TIMEOUT,
) -> None:
    """Call `main_func(*args)` in every process of this machine, and wait for all of them.

    A single process in all is this one. If one of several fails, the others are ended and its
    error is raised here.

    Args:
        main_func: importable, since the processes are spawned.
        num_processes: on this machine; on CUDA, the i-th gets the i-th GPU.
        num_machines, machine_rank: every machine calls `launch` with its own rank, from 0.
        dist_url: where rank 0 listens, `tcp://HOST:PORT`; "auto" takes a free port of this machine.
        args: picklable.
        device: the model's device; "cuda" communicates by NCCL, others by Gloo. On the CPU the
            processes share the cores.
        timeout: of collective operations.
    """
    check_machines(num_machines, machine_rank, dist_url)
    world_size = num_processes * num_machines
    if world_size == 1:
        main_func(*args)
        return
    if dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    worker_args = (main_func, world_size, num_processes, machine_rank, dist_url, args)
    mp.start_processes(
        _worker,
        args=(*worker_args, torch.device(device).type, timeout),
        nprocs=num_processes,
        start_method="spawn",
    )


def check_machines(num_machines: int, machine_rank: int, dist_url: str) -> None:
    """Raise a ValueError unless the machines of a run can find each other."""
    if not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"--machine-rank (={machine_rank}) must be at least 0 and below --num-machines "
            f"(={num_machines})"
        )
    if num_machines > 1 and dist_url == "auto":
        raise ValueError(
            f"--dist-url is 'auto', which finds a port of one machine, but --num-machines is "
            f"{num_machines}; give every machine the same --dist-url tcp://HOST:PORT"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _worker(
    local_rank: int,
    main_func: Callable,
    world_size: int,
    num_processes: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
    device_type: str,
    timeout: timedelta,
) -> None:
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
    else:
        torch.set_num_threads(max(1, available_cores() // num_processes))
    dist.init_process_group(
        backend="nccl" if device_type == "cuda" else "gloo",
        init_method=dist_url,
        world_size=world_size,
        rank=machine_rank * num_processes + local_rank,
        timeout=timeout,
    )
    try:
        comm.create_local_process_group(num_processes)
        comm.synchronize()
        main_func(*args)
        comm.synchronize()  # rank 0 still writes when the others are done
    finally:
        dist.destroy_process_group()


def available_cores() -> int:
    """CPU cores this process may use; a container or a scheduler may grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
