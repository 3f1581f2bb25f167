"""Where this process stands among the processes of a run, as torchrun or SLURM tells it.

Both start every process themselves and describe it in environment variables. The environment goes
before `--num-gpus` and its like, which are for runs that start their own processes.
"""

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM_PORTS = (20000, 30000)
"""Jobs meet at a port from this range that follows from their number, so all tasks know it."""


@dataclass(frozen=True)
class Place:
    """One process of a run whose processes somebody else has started.

    Attributes:
        rank, world_size: among all processes.
        local_rank, local_size: among those of this machine.
        init_method: where the processes meet, as `torch.distributed.init_process_group` takes it.
        starter: "torchrun" or "srun", for messages.
        restarts: how often the run was restarted or requeued.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    init_method: str
    starter: str
    restarts: int = 0

    def __post_init__(self) -> None:
        if self.world_size % self.local_size or self.rank % self.local_size != self.local_rank:
            raise ValueError(
                f"{self.starter} has placed rank {self.rank} of {self.world_size} as number "
                f"{self.local_rank} of the {self.local_size} on its machine; expected equally "
                "many processes on every machine, numbered machine by machine (with SLURM "
                "--ntasks-per-node=N --distribution=block)"
            )


def find_place(environ: Mapping[str, str] = os.environ) -> Place | None:
    """The place that `environ` describes; None where a run starts its processes itself.

    torchrun inside a SLURM step counts as torchrun. A step of one task is no distributed run but
    a shell (`srun --pty bash`), or the host of `--num-gpus`.

    Raises:
        ValueError: the processes are not spread evenly over the machines.
    """
    if all(name in environ for name in TORCHRUN):
        return Place(
            rank=int(environ["RANK"]),
            world_size=int(environ["WORLD_SIZE"]),
            local_rank=int(environ["LOCAL_RANK"]),
            local_size=int(environ["LOCAL_WORLD_SIZE"]),
            init_method="env://",
            starter="torchrun",
            # A job that SLURM has put back starts torchrun anew, which then counts from 0.
            restarts=int(environ.get("TORCHELASTIC_RESTART_COUNT", 0)) + _requeued(environ),
        )
    # Only a step has these two: the script of sbatch has a SLURM_PROCID as well.
    if "SLURM_PROCID" in environ and int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return _place_in_slurm(environ)
    return None


def _place_in_slurm(environ: Mapping[str, str]) -> Place:
    tasks = environ["SLURM_STEP_TASKS_PER_NODE"]  # "8", "8(x4)", or "8(x3),4" where uneven
    same_everywhere = re.fullmatch(r"(\d+)(\(x\d+\))?", tasks)
    if same_everywhere is None:
        raise ValueError(
            f"SLURM runs {tasks} tasks per node, expected equally many on every node; "
            "ask for --ntasks-per-node=N"
        )
    nodes = environ.get("SLURM_STEP_NODELIST") or environ["SLURM_JOB_NODELIST"]
    host = environ.get("MASTER_ADDR") or first_host(nodes)
    port = environ.get("MASTER_PORT") or slurm_port(environ)
    return Place(
        rank=int(environ["SLURM_PROCID"]),
        world_size=int(environ["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environ["SLURM_LOCALID"]),
        local_size=int(same_everywhere[1]),
        init_method=f"tcp://{host}:{port}",
        starter="srun",
        restarts=_requeued(environ),
    )


def _requeued(environ: Mapping[str, str]) -> int:
    return int(environ.get("SLURM_RESTART_COUNT") or 0)


def first_host(nodes: str) -> str:
    """The first of SLURM's list of hosts: `gpu[007-012,20],big1` gives `gpu007`."""
    without_rest = re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes)
    return without_rest.split(",")[0]


def slurm_port(environ: Mapping[str, str]) -> int:
    """A port for this step: neither two jobs in a row nor two steps of one job share it."""
    low, high = SLURM_PORTS
    number = int(environ.get("SLURM_JOB_ID", 0)) * 10 + int(environ.get("SLURM_STEP_ID", 0))
    return low + number % (high - low)


def adopt_place(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> None:
    """Let the command line say what the environment says, where somebody else starts processes.

    A run that was restarted or requeued resumes: its first start has left checkpoints.

    Args:
        args: of detectron2's `default_argument_parser`, completed in place.

    Raises:
        ValueError: `--num-gpus` or `--num-machines` contradict the environment.
    """
    place = find_place(environ)
    args.resume = args.resume or (place.restarts if place else _requeued(environ)) > 0
    if place is None:
        return
    num_machines = place.world_size // place.local_size
    for option, given, found in (
        ("--num-gpus", args.num_gpus, place.local_size),
        ("--num-machines", args.num_machines, num_machines),
    ):
        if given not in (1, found):
            raise ValueError(
                f"{option} is {given}, but {place.starter} has started {place.local_size} "
                f"processes on each of {num_machines} machines; leave {option} out"
            )
    args.num_gpus, args.num_machines = place.local_size, num_machines
    args.machine_rank = place.rank // place.local_size
    args.dist_url = place.init_method


def speaks_for_machine() -> bool:
    """Whether an error of all processes is this one's to print: the first of each machine."""
    place = find_place()
    return place is None or place.local_rank == 0


def has_own_gpu() -> bool:
    """Whether SLURM shows each task one GPU only (`--gpus-per-task=1`), as number 0."""
    place = find_place()
    return place is not None and place.starter == "srun" and torch.cuda.device_count() == 1
