"""The console command `aligndetr`, and the programs that it shares with tools/.

The module of a command is imported when the command is called, and torch once its options are
understood: `--help` takes no second.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from aligndetr import __version__

# Each has a `main()` that reads `sys.argv`, as a script does, and returns its exit status.
COMMANDS = {
    "train": ("aligndetr.cli.train", "train a config"),
    "sweep": ("aligndetr.cli.sweep", "train all combinations of configs and values"),
    "eval": ("aligndetr.cli.evaluate", "evaluate trained weights on the val data of a config"),
    "predict": ("aligndetr.cli.predict", "find objects in images and videos"),
    "app": ("aligndetr.cli.app", "serve a page on which a detector is tried in the browser"),
    "report": ("aligndetr.cli.report", "what AP is lost to, in one HTML file"),
    "alignment": ("aligndetr.cli.alignment", "how well scores say how good boxes are"),
    "compare": ("aligndetr.cli.compare", "runs side by side, with how sure differences are"),
    "convert": ("aligndetr.cli.convert", "write weights in another format, or share them"),
    "export": ("aligndetr.cli.export", "write a detector to ONNX, checked against the model"),
    "check-data": ("aligndetr.cli.check_data", "say what is wrong or odd in a data set"),
    "demo-data": ("aligndetr.cli.demo_data", "write the demo's data set"),
    "benchmark": ("aligndetr.cli.benchmark", "measure latency and throughput"),
    "info": ("aligndetr.cli.info", "versions, devices, attention backends, extras"),
}

USAGE = """\
usage: aligndetr COMMAND [options]

{commands}

aligndetr COMMAND --help shows the options and an example. To see all of it at work:

  aligndetr demo-data
  aligndetr train --config-file aligndetr_demo
  aligndetr predict --checkpoint output/demo/model_final.pth \\
      --input datasets/trees/val --output found
"""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one command; `argv` is what follows `aligndetr`, default: `sys.argv[1:]`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        lines = (f"  {name:12} {summary}" for name, (_, summary) in COMMANDS.items())
        print(USAGE.format(commands="\n".join(lines)), end="")
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"aligndetr {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        sys.exit(f"error: unknown command {name!r}; choose one of {', '.join(COMMANDS)}")
    sys.argv = [f"{_own_name()} {name}", *rest]
    return importlib.import_module(COMMANDS[name][0]).main()


def _own_name() -> str:
    """As it was called: `aligndetr`, or `python -m aligndetr`."""
    is_module = os.path.basename(sys.argv[0]) == "__main__.py"
    return "python -m aligndetr" if is_module else os.path.basename(sys.argv[0])
