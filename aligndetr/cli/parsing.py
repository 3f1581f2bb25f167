"""What the command lines have in common: help, names of configs, errors in one line."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aligndetr.shipped import find_config, is_override

if TYPE_CHECKING:
    from aligndetr.inference import Predictor


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is `doc`, with `%(prog)s` for the program as it was called."""
    return argparse.ArgumentParser(
        prog=_program(), description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _program() -> str:
    script = sys.argv[0]
    return f"python {script}" if script.endswith(".py") else script


def config_file(name: str) -> str:
    """The file that `--config-file` means, see `find_config`; argparse shows a mistake."""
    try:
        return find_config(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options of a program that runs a checkpoint; `parse_intermixed_args` reads them."""
    parser.add_argument(
        "--config-file", type=config_file, metavar="NAME", help="where the checkpoint holds none"
    )
    parser.add_argument("--device", help="cuda or cpu; default: the GPU if there is one")
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="changes of the config")


def add_predictor_options(parser: argparse.ArgumentParser) -> None:
    """The options that `load_predictor` reads, and `--tile`; parse by `parse_intermixed_args`."""
    parser.add_argument("--checkpoint", required=True, help="model_final.pth of a training")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights")
    parser.add_argument(
        "--tile", type=int, metavar="PIXELS", help="predict larger images in tiles of this edge"
    )
    add_model_options(parser)


def load_predictor(args: argparse.Namespace) -> "Predictor":
    """The detector that the options name; errors as of `Predictor.from_checkpoint`."""
    from aligndetr.inference import Predictor

    return Predictor.from_checkpoint(
        args.checkpoint, args.config_file, ema=args.ema, device=args.device, overrides=args.opts
    )


def move_overrides(args: argparse.Namespace, option: str) -> None:
    """Take the overrides out of the files of `option`: argparse gives it all words that follow.

    A word is an override if it is of the form `train.device=cpu`, and no file has that name.
    """
    words = getattr(args, option) or []
    overrides = [word for word in words if is_override(word) and not os.path.exists(word)]
    setattr(args, option, [word for word in words if word not in overrides])
    args.opts = [*args.opts, *overrides]


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """What the user can mend ends the program without a traceback: `error: …`, exit status 1.

    SIGTERM ends it by an exception, as Ctrl-C does, so that half-written files are removed.
    """
    earlier = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _end(signum: int, _frame: object) -> None:
    raise SystemExit(128 + signum)  # as a shell reports a process that a signal has ended
