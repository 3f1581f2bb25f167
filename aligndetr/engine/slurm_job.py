"""A training as a job of submitit, which SLURM puts back into its queue when time is up.

submitit gives each process of a job a rank and warns rank 0 by SIGUSR2 some time before the end.
The training is a program of its own: it saves a checkpoint when it gets SIGUSR1, and all its
processes stop together.
"""

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from aligndetr.utils.extras import require

from .place import TORCHRUN
from .signals import EXIT_STOPPED


class TrainingJob:
    """What every process of the job calls; submitit sends it there as a pickle.

    Args:
        command: program and arguments of one process of the training. It takes the place that
            `find_place` reads, and `--resume`.
    """

    def __init__(self, command: list[str]):
        self.command = command
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Run the training.

        Raises:
            RuntimeError: it failed; its output, in the job's log, says why.
        """
        from submitit.helpers import TorchDistributedEnvironment  # pyright: ignore

        place = TorchDistributedEnvironment()
        environment = {name: str(getattr(place, name.lower())) for name in TORCHRUN}
        # SLURM sends its warning to all processes of a job, and SIGUSR2 would kill this one.
        self._process = subprocess.Popen(
            self.command,
            env=os.environ | environment,
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        )
        code = self._process.wait()
        if code not in (0, EXIT_STOPPED):
            raise RuntimeError(
                f"rank {place.rank} ended with exit code {code}; its log says why:\n"
                f"{subprocess.list2cmdline(self.command)}"
            )

    def checkpoint(self) -> Any:
        """Have the training save and stop; the job that goes on from there.

        submitit calls this on rank 0, in the handler of its signal.
        """
        from submitit.helpers import DelayedSubmission  # pyright: ignore

        if self._process is not None:
            self._process.send_signal(signal.SIGUSR1)
            # Not `wait`: the handler has interrupted that, and it holds a lock.
            with contextlib.suppress(ChildProcessError):  # it has ended, and `wait` has seen it
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(TrainingJob([*without_resume(self.command), "--resume"]))

    def __getstate__(self) -> dict:
        return {"command": self.command, "_process": None}


def without_resume(command: list[str]) -> list[str]:
    return [word for word in command if word != "--resume"]


def submit(
    command: list[str],
    logs: Path,
    *,
    cluster: str | None,
    nodes: int,
    processes_per_node: int,
    gpus_per_node: int,
    cpus_per_process: int,
    hours: float,
    requeues: int,
    slurm: dict[str, Any],
) -> Any:
    """Hand a training to SLURM.

    Args:
        command: see `TrainingJob`.
        logs: folder of the job's script and logs, which all machines must see.
        cluster: "slurm"; "local" runs on this machine; None takes what there is.
        hours: after which SLURM ends the job; it is then put back, `requeues` times at most.
        slurm: further options of sbatch by their long names: {"partition": "gpu"}.

    Returns:
        submitit's job.

    Raises:
        MissingExtraError: submitit is not installed.
    """
    otherwise = ", or write an sbatch script with `srun` in it, see docs/distributed.md"
    submitit = require("submitit", "slurm", "submitting a job", otherwise)
    executor = submitit.AutoExecutor(logs, cluster, slurm_max_num_timeout=requeues)
    executor.update_parameters(
        name="aligndetr",
        nodes=nodes,
        tasks_per_node=processes_per_node,
        gpus_per_node=gpus_per_node,
        cpus_per_task=cpus_per_process,
        timeout_min=round(hours * 60),
        slurm_signal_delay_s=180,  # a step, then a checkpoint, must fit in
        slurm_srun_args=["--kill-on-bad-exit=1"],
        slurm_additional_parameters={"requeue": True, **slurm},
    )
    return executor.submit(TrainingJob(command))
