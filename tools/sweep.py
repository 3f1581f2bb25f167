"""What `aligndetr sweep` does, from a clone: `python tools/sweep.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

from aligndetr.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main())
