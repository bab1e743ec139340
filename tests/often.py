"""Run the pckd-nb command with two checkpoints per second: `python -m tests.often distill …`.

Tests interrupt and kill this process.
"""

import sys

from pckd_nb import cli
from pckd_nb.training import callbacks

if __name__ == "__main__":
    callbacks.MIN_SECONDS_BETWEEN_SAVES, callbacks.MAX_SAVING_SHARE = 0.5, 1
    sys.exit(cli.main())
