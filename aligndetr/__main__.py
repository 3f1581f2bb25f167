"""`python -m aligndetr`, for a clone that is not installed and for `torchrun -m`."""

import sys

from aligndetr.cli import main

if __name__ == "__main__":
    sys.exit(main())
