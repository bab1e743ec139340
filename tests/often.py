"""pckd-nb that writes a checkpoint twice a second: what tests interrupt and kill. `python -m tests.often distill …`."""

import sys

from pckd_nb import cli, training

if __name__ == "__main__":
    training.SECONDS_BETWEEN_SAVES, training.SHARE_OF_SAVING = 0.5, 1
    sys.exit(cli.main())
