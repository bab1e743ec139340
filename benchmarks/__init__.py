"""How fast pckd_nb is, beside a plain training loop and the floor: `python -m benchmarks`, from the repository root."""
