"""pckd-nb that writes a checkpoint twice a second: what tests interrupt and kill. `python -m tests.often distill …`."""

import sys

from pckd_nb import cli
from pckd_nb.training import callbacks

if __name__ == "__main__":
    callbacks.MIN_SECONDS_BETWEEN_SAVES, callbacks.MAX_SAVING_SHARE = 0.5, 1
    sys.exit(cli.main())
