"""Measure the memory of the contrast loss L_CC in a new process.

    python -m benchmarks.contrast_memory NAME BATCH DEVICE

A process that has done other work has freed memory. The loss could use it again, and the measured peak would be too
low. The command prints the peak memory of forward and backward pass in GiB, without their input, as JSON.
"""

import json
import re
import sys
from pathlib import Path

import torch

from .pieces import CONTRASTS, contrast_inputs, forward_backward


def main(name: str, batch: int, device: torch.device) -> float:
    """Return the GiB that forward and backward pass of a contrast need, without their input."""
    # on first use, libraries allocate memory of their own
    forward_backward(CONTRASTS[name], *contrast_inputs(8, device))
    inputs = contrast_inputs(batch, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        forward_backward(CONTRASTS[name], *inputs)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**30
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = kilobytes("VmRSS")
    forward_backward(CONTRASTS[name], *inputs)
    return (kilobytes("VmHWM") - before) / 2**20


def kilobytes(field: str) -> int:
    """Return a value of /proc/self/status in kB, such as that of VmHWM, the largest resident memory."""
    return int(re.findall(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), torch.device(sys.argv[3]))))
