"""How fast pckd_nb is, beside a plain training loop and the floor: `python -m benchmarks`, from the repository root."""

import logging

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns on import where there is no GPU
