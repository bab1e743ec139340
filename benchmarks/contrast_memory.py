"""python -m benchmarks.contrast_memory NAME BATCH DEVICE: GiB that forward and backward of the contrast need, as JSON.

Counted from just before the call to its highest point; the input is not in it. A process of its own, so that nothing
freed earlier is used again unseen.
"""

import json
import re
import sys
from pathlib import Path

import torch

from .pieces import CONTRASTS, contrast_inputs, forward_backward


def main(name: str, batch: int, device: torch.device) -> float:
    forward_backward(CONTRASTS[name], *contrast_inputs(8, device))  # libraries take their own share on first use
    inputs = contrast_inputs(batch, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        forward_backward(CONTRASTS[name], *inputs)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**30
    Path("/proc/self/clear_refs").write_text("5")  # the highest point starts anew
    before = kilobytes("VmRSS")
    forward_backward(CONTRASTS[name], *inputs)
    return (kilobytes("VmHWM") - before) / 2**20


def kilobytes(field: str) -> int:
    return int(re.findall(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), torch.device(sys.argv[3]))))
