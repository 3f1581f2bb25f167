"""Starting the processes of a run: one per GPU, or several on the CPU.

detectron2's `launch` takes NCCL wherever a GPU is present; here the device decides, so that
`train.device=cpu` runs on any machine. Under torchrun and srun the processes are there already.
"""

import contextlib
import multiprocessing
import os
import secrets
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from torch.distributed.elastic.multiprocessing.errors import record

from aligndetr.utils.cores import available_cores

from .lifeline import OTHER_RANK_FAILED, Lifeline
from .meeting import fresh_store
from .place import Place, find_place
from .supervision import supervise, write_error

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

    A single process in all is this one. Where torchrun or srun has started the processes, each
    calls `launch`, the place it was given counts, and the next four arguments do not.

    If one process fails, the others end within a minute, see `Lifeline`.

    Args:
        main_func: importable, since the processes are spawned.
        num_processes: on this machine; on CUDA, the i-th gets the i-th GPU.
        num_machines, machine_rank: every machine calls `launch` with its own rank, from 0.
        dist_url: where rank 0 listens, `tcp://HOST:PORT`; "auto" takes a free port of this machine.
        args: picklable.
        device: the model's device; "cuda" communicates by NCCL, others by Gloo. On the CPU the
            processes share the cores.
        timeout: of collective operations.

    Raises:
        RankFailedError: with the traceback of the process that failed first.
        SystemExit: the processes ended with one exit code, for example after a signal.
    """
    device_type = torch.device(device).type
    place = find_place()
    if place is not None:
        record(_run)(place, main_func, args, device_type, timeout)
        return
    check_machines(num_machines, machine_rank, dist_url)
    if num_processes * num_machines == 1:
        main_func(*args)
        return
    if dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{free_port()}"
    places = [
        Place(
            rank=machine_rank * num_processes + local_rank,
            world_size=num_processes * num_machines,
            local_rank=local_rank,
            local_size=num_processes,
            init_method=dist_url,
            starter="--num-gpus",
        )
        for local_rank in range(num_processes)
    ]
    with tempfile.TemporaryDirectory(prefix="aligndetr-errors-") as errors:
        context: Any = mp.start_processes(
            _worker,
            args=(places, main_func, args, device_type, timeout, errors),
            nprocs=num_processes,
            start_method="spawn",
            join=False,
        )
        supervise(context.processes, errors)


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


def free_port() -> int:
    """Drawn from those that systems do not hand out by default: it is bound seconds later."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _worker(local_rank: int, places: list[Place], *rest: Any) -> None:
    """In a process of its own: it is reached by the signals of its starter alone.

    (Ctrl-C goes to all processes of a terminal's group, and would come twice.)
    """
    os.setpgrp()
    # The system's own action, which also ends a wait for another machine. Training changes it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # torch has the system end this process with its starter, from now on.
    starter = multiprocessing.parent_process()
    if starter is not None and not starter.is_alive():
        sys.exit(1)
    *arguments, errors = rest
    try:
        _run(places[local_rank], *arguments)
    except Exception:
        write_error(errors, places[local_rank].rank, traceback.format_exc())
        sys.exit(1)


def _run(
    place: Place,
    main_func: Callable,
    args: tuple[Any, ...],
    device_type: str,
    timeout: timedelta,
) -> None:
    """Call `main_func(*args)` as one of the processes of a run."""
    if place.world_size == 1:
        main_func(*args)
        return
    if device_type == "cuda":
        # A task of SLURM may see one GPU only, its own.
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    else:
        torch.set_num_threads(max(1, available_cores() // place.local_size))
    store, *_ = next(
        dist.rendezvous(place.init_method, place.rank, place.world_size, timeout=timeout)
    )
    store.set_timeout(timeout)
    dist.init_process_group(
        backend="nccl" if device_type == "cuda" else "gloo",
        store=fresh_store(store, place.rank, place.world_size, timeout),
        world_size=place.world_size,
        rank=place.rank,
        timeout=timeout,
    )
    comm.create_local_process_group(place.local_size)
    url = urlsplit(place.init_method)
    host = url.hostname or os.environ["MASTER_ADDR"]
    lifeline = Lifeline(host, several_machines=place.world_size > place.local_size)
    try:
        status = _exit_status(main_func, args)
        comm.synchronize()  # rank 0 still writes when the others are done
    except BaseException:
        # The process group stays: taking it down could wait for the others.
        if lifeline.report(traceback.format_exc()).rank != place.rank:
            sys.exit(OTHER_RANK_FAILED)
        raise
    lifeline.close()
    dist.destroy_process_group()
    if status:
        sys.exit(status)


def _exit_status(main_func: Callable, args: tuple[Any, ...]) -> int:
    """What `main_func` hands to `sys.exit` as a number, which all ranks do together; else 0."""
    try:
        main_func(*args)
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        return end.code
    return 0
