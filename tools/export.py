"""What `aligndetr export` does, from a clone: `python tools/export.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

from aligndetr.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
