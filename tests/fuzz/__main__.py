"""Read thousands of broken files and count how it ends.

python -m tests.fuzz --files 12000 [--seed 0] [--format .pkl]

Each must be read or refused by a ValueError or OSError of at least 20 characters within 5 seconds
of processor time; the process must not die, and not grow beyond 1 GiB. Prints a line per format;
the exit status is 1 if a file ended otherwise, which is then kept beside the report.
"""

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

MAX_SECONDS = 5.0
MAX_MEMORY = 1 << 30


def run_format(name: str, count: int, seed: int, keep: Path) -> Counter:
    """Read `count` broken files of one format; returns how often each outcome was."""
    from tests.fuzz.formats import make_formats

    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {MAX_SECONDS} s")  # an OSError, told apart by its type

    signal.signal(signal.SIGVTALRM, too_long)
    outcomes: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        form = make_formats(Path(folder))[name]
        rng = random.Random(f"{name} {seed}")
        for number in range(count):
            data = form.broken(rng)
            (keep / "current").write_bytes(data)
            with tempfile.TemporaryDirectory(dir=folder) as own:
                signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)
                outcome = outcome_of(form.read, data, Path(own))
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            outcomes[outcome if outcome in ("read", "refused") else "wrong"] += 1
            if outcome not in ("read", "refused"):
                (keep / f"{name.strip('.').replace(' ', '_')}_{number}").write_bytes(data)
                print(f"{name} {number}: {outcome}", flush=True)
    return outcomes


def outcome_of(read, data: bytes, folder: Path) -> str:
    """ "read", "refused", or what went wrong."""
    try:
        read(data, folder)
    except TimeoutError as error:
        return f"hang: {error}"
    except (ValueError, OSError) as error:
        clear = len(str(error)) >= 20
        return "refused" if clear else f"unclear: {type(error).__name__}: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "read"


def _child(args: argparse.Namespace) -> int:
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    start = time.process_time()
    outcomes = run_format(args.format, args.files, args.seed, args.keep)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{args.format:14} {args.files:6} files: {outcomes['read']:5} read, "
        f"{outcomes['refused']:5} refused, {outcomes['wrong']} wrong; "
        f"{time.process_time() - start:.0f} s, peak {memory / 2**20:.0f} MiB"
    )
    return int(outcomes["wrong"] > 0 or memory > MAX_MEMORY)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=12_000, help="of all formats together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", help="one only, in this process")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz_failures")
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    if args.format:
        return _child(args)
    from tests.fuzz.formats import make_formats

    with tempfile.TemporaryDirectory() as folder:
        names = list(make_formats(Path(folder)))
    each = -(-args.files // len(names))
    failed = 0
    for name in names:  # apart, so that a crash is seen and its file known
        command = [sys.executable, "-m", "tests.fuzz", "--format", name, "--files", str(each)]
        command += ["--seed", str(args.seed), "--keep", str(args.keep)]
        status = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
        if status not in (0, 1):
            print(f"{name}: the process died with {status} on {args.keep / 'current'}")
        failed += status != 0
    print(f"{each * len(names)} files, {failed} of {len(names)} formats failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
