"""torch.compile: where it pays back, and the student's compiled forward pass."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .models import Classifier, Output, WrappedClassifier, count_flops

# By benchmarks/report.md compiling WRN-16-2 (6e8 FLOPs per image) pays back after some 1e14 in bfloat16; resnet20
# (2.4e8) gains nothing that is larger than the noise. In float32 neither gains.
FLOPS_WORTH_COMPILING, RUN_WORTH_COMPILING = 4e8, 1e15


def compiles(
    wanted: bool | str, student: Classifier, rows: int, shape: tuple[int, int, int], device: torch.device,
    precision: str, needs_maps: bool = False,
) -> bool:  # fmt: skip
    """Whether the student is to be compiled. rows: images it sees in the whole run, views counted, of this shape.
    needs_maps: its feature maps are taken by hooks, which compiled code need not run, so it is not.

    "auto" decides by the work there is, so that the same settings always give the same bits; where there is no working
    compiler it warns and declines. Raises ValueError for anything but True, False and "auto".
    """
    if wanted not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {wanted!r}")
    if needs_maps:
        if wanted is True:
            warnings.warn("the method takes feature maps by hooks: the student runs uncompiled", stacklevel=2)
        return False
    measured = device.type == "cpu" and precision == "bf16-mixed" and not isinstance(student, WrappedClassifier)
    if wanted == "auto" and not measured:
        wanted = False
    if wanted == "auto":
        flops = 3 * count_flops(student, shape)  # forward and backward
        wanted = flops > FLOPS_WORTH_COMPILING and rows * flops > RUN_WORTH_COMPILING
    if not wanted:
        return False
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # no compiler, or none that works: whatever it raises
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(f"torch.compile does not work here ({reason}): the student runs uncompiled", stacklevel=2)
        return False
    return True


def compiled(student: Classifier) -> Callable[[Tensor], Output]:
    """The student's forward pass with its features compiled; the last layer stays outside, its weight is an output."""
    features = torch.compile(student.features, dynamic=False)
    return lambda x: student.output(features(x))
