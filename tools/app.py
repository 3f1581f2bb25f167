"""What `aligndetr app` does, from a clone: `python tools/app.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without being installed

from aligndetr.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
