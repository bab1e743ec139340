"""The report of `pckd-nb doctor`: this machine, the settings that training chooses on it, and the time of the demo."""

import os
from collections.abc import Iterator

import joblib
import torch

from . import demo, hardware
from .compiling import MIN_FLOPS_PER_IMAGE, MIN_FLOPS_PER_RUN
from .evaluation import make_fabric
from .training.teacher import MAX_LOGITS_ERROR, fast_forms


def report_lines() -> Iterator[str]:
    """Yield the lines of the report. The time of the demo is measured before the last lines, for about ten seconds.

    Yields
    ------
    str
    """
    device = make_fabric()[0].device
    yield f"machine    {hardware.describe(device)}; torch {torch.__version__}"
    yield f"cores      {joblib.cpu_count()} of {os.cpu_count()} can be used; current load {_load()}"
    if device.type != "cpu":
        yield f"device     {device}"
    yield f"precision  {_precision(device)}"
    yield f"teacher    {_teacher(device)}"
    yield f"compile    {_compile(device)}"
    yield f"threads    {_threads()}"
    yield "demo       measuring for about ten seconds …"
    step_seconds = demo.measure_steps()
    steps = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in step_seconds.items())
    yield f"           one training step: {steps}"
    yield from demo.describe_sizes(step_seconds, demo.choose_size(step_seconds))


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _precision(device: torch.device) -> str:
    if hardware.computes_in_bfloat16(device):
        return "bf16-mixed: this hardware computes in bfloat16"
    return "32-true: this hardware does not compute in bfloat16, and emulating it would be slower"


def _teacher(device: torch.device) -> str:
    names = {"folded": "float32 with BatchNorm folded"}
    forms = ", else ".join(names.get(form, form) for form in fast_forms(device, needs_maps=False))
    limit = f"at most {100 * MAX_LOGITS_ERROR:.0f} %"
    return f"{forms}: the first form with a logits error of {limit}; with precision 32-true the original network"


def _compile(device: torch.device) -> str:
    if device.type == "cpu" and hardware.computes_in_bfloat16(device):
        large = f"{MIN_FLOPS_PER_IMAGE:.0e} FLOPs per image, in runs of more than {MIN_FLOPS_PER_RUN:.0e}"
        return f"only for students of more than {large}"
    return 'off: not known to save time on this machine; the option "compile" turns it on'


def _threads() -> str:
    chosen = [f"{name}={os.environ[name]}" for name in hardware.WAIT_VARIABLES if name in os.environ]
    waiting = ", ".join(chosen) or "the default of OpenMP, because torch was imported before this package"
    return f"{torch.get_num_threads()}; how long idle threads stay active before they sleep: {waiting}"
