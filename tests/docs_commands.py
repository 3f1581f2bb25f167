"""The fenced commands of README and docs: which there are, and which are not run and why."""

import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "aligndetr" / "layers" / "ms_deform_attn" / "README.md",
]

# Commands that no test runs as they stand: a pattern of the words joined by one space, and why.
# `tests/test_docs.py` parses them, checks every option, config and key, and dry-runs what can be:
# make by `make -n`, extras against setup.py. All others are run by `tests/test_docs_run.py`.
NOT_RUN = {
    "pip install *": "needs the network",
    "make *": "minutes to half an hour; .ci/run makes lint, types, docs, test and test-page",
    "srun *": "needs a SLURM cluster",
    "torchrun --nnodes 2 *": "needs two machines; tests/engine/test_two_machines.py",
    "python tools/train_net.py --num-gpus 8 --num-machines 2 *": "needs two machines; "
    "tests/engine/test_two_machines.py",
    "trtexec *": "needs TensorRT",
    "python tools/train_on_slurm.py *": "needs a cluster; tests/engine/test_slurm_job.py",
    "python tools/sweep.py * --num-gpus 8 *": "four trainings for eight GPUs; the demo's is run",
    "*train.wandb.enabled=True*": "needs an account and a server; tests/engine/test_trackers.py",
    "python tools/convert_checkpoint.py * hf://*": "needs an account; tests/inference/test_sharing",
    "python tools/demo.py * --input 0 *": "needs a camera; tests/inference/test_videos.py",
    "python tools/app.py *": "waits for a browser; tests/app",
    "* projects/aligndetr/configs/backbones/aligndetr_k=2_swin_l_*": "weights of 790 MB; "
    "tests/config/test_every_config.py trains a step with random ones",
}


@dataclass(frozen=True)
class Command:
    """One line of a bash block, continued lines joined, without the comment."""

    page: str  # from the root: "docs/training.md"
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{Path(self.page).stem}: {' '.join(self.words)[:60]}"

    @property
    def why_not_run(self) -> str | None:
        """None for a command that a test runs."""
        return next((why for pattern, why in NOT_RUN.items() if self.is_like(pattern)), None)

    def is_like(self, pattern: str) -> bool:
        # fnmatch's brackets would be taken for a set of characters.
        return fnmatchcase(" ".join(self.words).replace("[", "("), pattern)


def commands() -> list[Command]:
    """Of all pages, in their order."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    found.append(Command(page.relative_to(ROOT).as_posix(), tuple(words)))
    return found
