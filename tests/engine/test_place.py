"""Ranks as torchrun and SLURM give them."""

import sys

import pytest
import torch.distributed as dist

from aligndetr.engine import launch
from aligndetr.engine.launch import _exit_status
from aligndetr.engine.place import adopt_place, find_place, first_host
from tests.engine.stand_in import arguments

TORCHRUN = {
    "RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8",
    "MASTER_ADDR": "gpu007", "MASTER_PORT": "29400", "TORCHELASTIC_RESTART_COUNT": "0",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_PROCID": "11", "SLURM_LOCALID": "3",
    "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
}  # fmt: skip


@pytest.mark.parametrize(
    "environ", [TORCHRUN, SRUN, SRUN | TORCHRUN], ids=["torchrun", "srun", "both"]
)
def test_rank_eleven_of_two_machines(environ):
    place = find_place(environ)
    assert (place.rank, place.world_size, place.local_rank, place.local_size) == (11, 16, 3, 8)
    args = arguments()
    adopt_place(args, environ)
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (8, 2, 1)
    assert args.dist_url == place.init_method
    assert not args.resume


def test_all_tasks_of_a_slurm_step_meet_at_the_same_place():
    places = [
        find_place(SRUN | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 8)})
        for rank in range(16)
    ]
    assert {place.init_method for place in places} == {"tcp://gpu007:27110"}
    assert find_place(SRUN | {"SLURM_STEP_ID": "1"}).init_method == "tcp://gpu007:27111"
    chosen = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5000"}
    assert find_place(SRUN | chosen).init_method == "tcp://10.0.0.1:5000"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"},  # in the sbatch script
        SRUN | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        {"RANK": "0", "WORLD_SIZE": "2"},  # of something else
    ],
)
def test_elsewhere_the_command_line_counts(environ):
    assert find_place(environ) is None
    args = arguments(num_gpus=4)
    adopt_place(args, environ)
    assert args == arguments(num_gpus=4)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("localhost", "localhost"),
        ("gpu[007-012,20],big1", "gpu007"),
        ("a-1,a-2", "a-1"),
        ("r[1-2]n[3,5]", "r1n3"),
        ("gpu[7,9-11].cluster", "gpu7.cluster"),
    ],
)
def test_first_host_of_a_list(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    "environ",
    [
        TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "1"},
        TORCHRUN | {"SLURM_RESTART_COUNT": "1"},
        SRUN | {"SLURM_RESTART_COUNT": "2"},
        {"SLURM_RESTART_COUNT": "1"},  # one process, or --num-gpus
    ],
)
def test_restarted_and_requeued_runs_resume(environ):
    args = arguments()
    adopt_place(args, environ)
    assert args.resume


@pytest.mark.parametrize(
    "environ",
    [
        SRUN | {"SLURM_STEP_TASKS_PER_NODE": "8,4", "SLURM_STEP_NUM_TASKS": "12"},
        SRUN | {"SLURM_PROCID": "1", "SLURM_LOCALID": "0"},  # --distribution=cyclic
    ],
)
def test_uneven_machines_are_refused(environ):
    with pytest.raises(ValueError, match="ntasks-per-node"):
        find_place(environ)


def test_options_must_not_contradict_the_environment():
    with pytest.raises(ValueError, match="--num-gpus is 4, but torchrun has started 8"):
        adopt_place(arguments(num_gpus=4), TORCHRUN)
    adopt_place(arguments(num_gpus=8, num_machines=2), TORCHRUN)


def test_torchrun_of_one_process_is_a_run_of_its_own(monkeypatch):
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in (TORCHRUN | alone).items():
        monkeypatch.setenv(name, value)
    called = []
    launch(called.append, 1, args=("here",), device="cpu")
    assert called == ["here"]
    assert not dist.is_initialized()


def test_what_ends_a_run_with_words_is_no_exit_code():
    assert _exit_status(sys.exit, (75,)) == 75
    with pytest.raises(SystemExit, match="error: in words"):
        _exit_status(sys.exit, ("error: in words",))
