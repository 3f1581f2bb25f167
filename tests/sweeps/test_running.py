"""A sweep trains what is not finished, goes on after a failure, and stops where it is told to.

The "training" is a program that takes the arguments of tools/train_net.py and leaves the files that
a finished one does.
"""

import json
import os
import signal
import sys
import threading
import time

import pytest

from aligndetr.cli import sweep as cli_sweep
from aligndetr.sweeps import (
    Slurm,
    expand,
    measure_alignment,
    prepare,
    run_on_slurm,
    run_one_by_one,
    write_results,
)
from aligndetr.sweeps.running import is_finished

DEMO = "projects/aligndetr/configs/aligndetr_demo.py"
TRAIN_NET = """
import json, os, pathlib, signal, sys, time
options = dict(word.split("=", 1) for word in sys.argv if "=" in word and not word.endswith(".py"))
folder, seed = pathlib.Path(options["train.output_dir"]), int(options["train.seed"])
with open(folder.parent / "calls", "a") as calls:
    calls.write(f"{folder.name} {' '.join(sys.argv[1:4])}\\n")
if seed == 7:
    sys.exit(3)
if seed > 100:
    sys.exit(seed)
if seed < 0:
    if seed != -signal.SIGKILL:
        signal.signal(-seed, signal.SIG_DFL)
    os.kill(os.getpid(), -seed)
if seed == 8 and not (folder / "saved").exists():  # waits to be stopped, as ours does
    (folder / "saved").touch()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(int(os.environ.get("ENDS_WITH", 75))))
    (folder / "ready").touch()
    time.sleep(60)
tau = float(options.get("model.criterion.tau", 1.5))
(folder / "config.yaml").write_text("train: {max_iter: 4}")
lines = [{"iteration": 1, "total_loss": 5.0, "bbox/AP": 99.0},
         {"iteration": 4, "bbox/AP": 10 * tau + seed, "bbox/APs": float("nan")}]
(folder / "metrics.json").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(folder / "model_final.pth").touch()
"""


@pytest.fixture
def train_net(tmp_path):
    path = tmp_path / "train_net.py"
    path.write_text(TRAIN_NET)
    return [sys.executable, str(path)]


def calls(output):
    return (output / "calls").read_text().splitlines()


def test_all_are_trained_once_and_the_table_averages_seeds(tmp_path, train_net):
    output = tmp_path / "sweep"
    runs = expand([DEMO], ["model.criterion.tau=1.5,3", "train.seed=0,1"])
    assert run_one_by_one(prepare(runs, output), output, train_net, ["--num-gpus", "1"]) == {}
    assert calls(output) == [f"{run.name} --resume --num-gpus 1" for run in runs]
    # 10 tau + seed: 15.5 and 30.5, each with a standard deviation of sqrt(1/2).
    table = write_results(runs, output, {})
    assert "| aligndetr_demo__tau=1.5 | 2      | 15.5 ± 0.71 |" in table
    assert "| aligndetr_demo__tau=3   | 2      | 30.5 ± 0.71 |" in table
    assert (output / "table.md").read_text() == table + "\n"
    assert (output / "table.png").read_bytes().startswith(b"\x89PNG")
    records = json.loads((output / "results.json").read_text())
    assert [r["metrics"] for r in records] == [
        {"bbox/AP": ap, "bbox/APs": None} for ap in (15, 16, 30, 31)
    ]

    assert prepare(runs, output) == []  # nothing is left to do


def test_more_values_train_only_what_is_new(tmp_path, train_net):
    output = tmp_path / "sweep"
    run_one_by_one(prepare(expand([DEMO], ["train.seed=0,1"]), output), output, train_net)
    more = prepare(expand([DEMO], ["train.seed=0,1,2"]), output)
    assert [run.name for run in more] == ["aligndetr_demo__seed=2"]


def test_a_folder_of_other_settings_is_refused(tmp_path):
    prepare(expand([DEMO], ["train.seed=0,1", "train.max_iter=9"]), tmp_path)
    with pytest.raises(FileExistsError, match=r"seed=0 holds a run with other.*train.max_iter=9"):
        prepare(expand([DEMO], ["train.seed=0,1", "train.max_iter=10"]), tmp_path)


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path, train_net):
    runs = expand([DEMO], ["train.seed=7,2"])
    failed = run_one_by_one(prepare(runs, tmp_path), tmp_path, train_net)
    assert failed == {"aligndetr_demo__seed=7": 3}
    assert "| aligndetr_demo | 1 of 2, exit code 3 | 17" in write_results(runs, tmp_path, failed)


# 0 is that of a run that was at its end; 1 that of one that had no handler for signals yet.
@pytest.mark.parametrize(
    ("run_ends_with", "sweep_ends_with"), [(75, 75), (74, 74), (0, 143), (1, 143)]
)
def test_a_signal_reaches_the_run_and_ends_the_sweep_and_the_next_call_goes_on(
    run_ends_with, sweep_ends_with, tmp_path, train_net, monkeypatch
):
    monkeypatch.setenv("ENDS_WITH", str(run_ends_with))
    runs = expand([DEMO], ["train.seed=8,1"])
    stopped, other = (tmp_path / run.name for run in runs)

    def stop_when_ready():
        while not (stopped / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_ready, daemon=True).start()
    with pytest.raises(SystemExit) as end:
        run_one_by_one(prepare(runs, tmp_path), tmp_path, train_net)
    assert end.value.code == sweep_ends_with
    assert not other.joinpath("model_final.pth").exists()
    run_one_by_one(prepare(runs, tmp_path), tmp_path, train_net)
    assert is_finished(stopped)
    assert is_finished(other)


@pytest.mark.parametrize(
    ("run_ends_with", "sweep_ends_with"),
    [(-15, 143), (143, 143), (-2, 130), (130, 130), (-10, 138)],
)
def test_a_run_that_a_signal_has_ended_is_the_last(
    run_ends_with, sweep_ends_with, tmp_path, train_net
):
    runs = expand([DEMO], [f"train.seed={run_ends_with},1"])
    with pytest.raises(SystemExit) as end:
        run_one_by_one(prepare(runs, tmp_path), tmp_path, train_net)
    assert end.value.code == sweep_ends_with
    assert len(calls(tmp_path)) == 1


def test_a_run_that_the_system_has_killed_is_not_the_last(tmp_path, train_net):
    runs = expand([DEMO], ["train.seed=-9,1"])  # as where memory runs out
    failed = run_one_by_one(prepare(runs, tmp_path), tmp_path, train_net)
    assert failed == {"aligndetr_demo__seed=-9": -9}
    assert is_finished(tmp_path / "aligndetr_demo__seed=1")


def test_a_signal_ends_the_measuring_too(tmp_path, train_net):
    runs = expand([DEMO], ["train.seed=1,2"])
    run_one_by_one(prepare(runs, tmp_path), tmp_path, train_net)
    ends = "open('measured', 'a').write('once '); raise SystemExit(143)"
    program = tmp_path / "alignment.py"
    program.write_text(ends.replace("measured", (tmp_path / "measured").as_posix()))
    with pytest.raises(SystemExit) as end:
        measure_alignment(runs, tmp_path, [sys.executable, str(program)])
    assert end.value.code == 143
    assert (tmp_path / "measured").read_text() == "once "


def test_alignment_is_measured_once_and_stands_in_the_table(tmp_path, train_net):
    runs = expand([DEMO], ["train.seed=1,7"])
    run_one_by_one(prepare(runs, tmp_path), tmp_path, train_net)
    program = tmp_path / "alignment.py"
    program.write_text(
        "import json, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[1]).parent / 'model_final_report'\n"
        "folder.mkdir()\n"  # fails when called again
        "layers = [{'name': '1', 'pearson': 0.1}, {'name': '2', 'pearson': 0.75, 'ece': None}]\n"
        "(folder / 'alignment.json').write_text(json.dumps({'layers': layers}))"
    )
    for _ in range(2):
        measure_alignment(runs, tmp_path, [sys.executable, str(program)])
        table = write_results(runs, tmp_path, {})
        assert table.splitlines()[0].split() == (
            ["|", "experiment", "|", "runs", "|", "alignment/pearson", "|", "bbox/AP", "|"]
        )
        assert "| 0.75 " in table
    assert not (tmp_path / "aligndetr_demo__seed=7/model_final_report").exists()


@pytest.fixture
def sweep(tmp_path, train_net, monkeypatch, capsys):
    """Calls `aligndetr sweep` with the "training"; its exit status and its lines."""
    monkeypatch.setattr(cli_sweep, "PROGRAM", train_net)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # the command adds to it

    def run(*words):
        words = ["sweep", "--config-file", DEMO, *words, "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", words)
        status = cli_sweep.main()
        return status, capsys.readouterr().out.splitlines()

    return run


def test_the_command_says_trains_and_prints_the_table(sweep, tmp_path):
    names = ["aligndetr_demo__seed=1", "aligndetr_demo__seed=7"]
    seeds = "train.seed=1,7"
    assert sweep(seeds, "--dry-run") == (0, ["2 runs, 0 of them finished", *names])
    status, lines = sweep(seeds, "--metrics", "bbox/AP,bbox/APs", "--num-gpus", "2")
    assert status == 1  # for that of seed 7 fails
    assert "| bbox/AP | bbox/APs |" in " ".join(lines[-3].split())
    assert "| 1 of 2, exit code 3 |" in lines[-1]
    assert sweep(seeds, "--dry-run") == (0, ["2 runs, 1 of them finished", names[1]])
    assert calls(tmp_path) == [f"{name} train --resume --num-gpus" for name in names]
    assert sweep("train.seed=1")[0] == 0


def test_a_mistake_in_the_command_is_one_line(sweep):
    with pytest.raises(SystemExit, match="^error: .*tua"):
        sweep("model.criterion.tua=1,2")


def test_a_run_without_its_last_evaluation_is_not_finished(tmp_path, train_net):
    (run,) = expand([DEMO], ["train.seed=1"])
    run_one_by_one(prepare([run], tmp_path), tmp_path, train_net)
    folder = tmp_path / run.name
    assert is_finished(folder)
    first, _ = (folder / "metrics.json").read_text().splitlines()
    (folder / "metrics.json").write_text(first + "\n")
    assert not is_finished(folder)


@pytest.fixture
def finished(tmp_path, train_net):
    """The folder of a finished run."""
    (run,) = expand([DEMO], ["train.seed=1"])
    run_one_by_one(prepare([run], tmp_path), tmp_path, train_net)
    return tmp_path / run.name


@pytest.mark.parametrize(
    "config",
    [
        "train: {max_iter: 4, hooks: [{_target_: my_package.MyHook}]}",  # of a .py config
        "train: {max_iter: '${schedule.length}'}\nschedule: {length: 4}",
    ],
)
def test_a_config_is_asked_for_a_number_alone(finished, config):
    (finished / "config.yaml").write_text(config)
    assert is_finished(finished)
    (finished / "config.yaml").write_text(config.replace("4", "8"))
    assert not is_finished(finished)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("train: {}", "config.yaml: `train.max_iter` is None.*remove the folder"),
        ("train: {max_iter: many}", "config.yaml: `train.max_iter` is 'many'"),
        ("train: {max_iter: '${length}'}", "config.yaml: .*'length' not found"),
        ("train: [", "config.yaml: while parsing"),
        ("'train: {max_iter: 4}'", "config.yaml: `train.max_iter` is None"),
    ],
)
def test_a_config_without_the_number_is_named(finished, config, message):
    (finished / "config.yaml").write_text(config)
    with pytest.raises(ValueError, match=message):
        is_finished(finished)


def test_options_of_the_cluster():
    slurm = Slurm.of("partition=gpu,constraint=a=b", "slurm", 8, 2.5)
    assert (slurm.cluster, slurm.processes, slurm.hours) == ("slurm", 8, 2.5)
    assert slurm.options == {"partition": "gpu", "constraint": "a=b"}
    assert Slurm.of("", None, 1, 1).options == {}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit's logs
def test_jobs_of_a_cluster(tmp_path, train_net, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr("pdb.post_mortem", lambda *_: None)  # submitit's way to debug
    runs = expand([DEMO], ["train.seed=0,7"])
    failed = run_on_slurm(prepare(runs, tmp_path), tmp_path, train_net, Slurm("debug"))
    assert failed == {"aligndetr_demo__seed=7": 1}
    assert is_finished(tmp_path / "aligndetr_demo__seed=0")
