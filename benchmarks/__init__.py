"""Measure how fast pckd_nb is, compared with a plain training loop and with the networks alone.

Start it with `python -m benchmarks` in the root of the repository.
"""

import logging

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # without a GPU, its import gives a warning
