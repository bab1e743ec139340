"""Decide whether torch.compile is worth its time, and compile the forward pass of the student."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .models import Classifier, Output, WrappedClassifier, count_flops

# Measured in bfloat16, with FLOPs of the forward and backward pass: compiling WRN-16-2 (6e8 FLOPs per image) saves time
# in runs of more than about 1e14 FLOPs. The limit below is ten times as large. For resnet20 (2.4e8 FLOPs per image) the
# gain is within the noise. In float32 neither becomes faster.
MIN_FLOPS_PER_IMAGE, MIN_FLOPS_PER_RUN = 4e8, 1e15


def should_compile(
    wanted: bool | str, student: Classifier, num_images: int, shape: tuple[int, int, int], device: torch.device,
    precision: str, needs_maps: bool = False,
) -> bool:  # fmt: skip
    """Return whether to compile the student.

    With "auto" the decision depends only on the amount of work, so the same settings always give exactly the same
    results. If torch.compile does not work on this machine, there is a warning and the answer is False.

    Parameters
    ----------
    wanted : bool or "auto"
        The setting `compile`.
    student : Classifier
    num_images : int
        Number of images that the student sees in the whole run. Each view of an image counts.
    shape : (int, int, int)
        Channels, height and width of an image.
    device : torch.device
    precision : str
        Precision of Lightning Fabric, such as "bf16-mixed" or "32-true".
    needs_maps : bool
        Whether the method needs feature maps. They are collected by hooks, which compiled code may skip, so the
        student is not compiled.

    Returns
    -------
    bool

    Raises
    ------
    ValueError
        If `wanted` is not True, False or "auto".
    """
    if wanted not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {wanted!r}")
    if needs_maps:
        if wanted is True:
            warnings.warn(
                "the method needs feature maps, which are collected by hooks: the student is not compiled", stacklevel=2
            )
        return False
    # "auto" compiles only where the gain was measured
    was_measured = device.type == "cpu" and precision == "bf16-mixed" and not isinstance(student, WrappedClassifier)
    if wanted == "auto" and not was_measured:
        wanted = False
    if wanted == "auto":
        flops = 3 * count_flops(student, shape)  # forward and backward
        wanted = flops > MIN_FLOPS_PER_IMAGE and num_images * flops > MIN_FLOPS_PER_RUN
    if not wanted:
        return False
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # torch raises many types if there is no working compiler
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(f"torch.compile does not work here ({reason}): the student is not compiled", stacklevel=2)
        return False
    return True


def compile_forward(student: Classifier) -> Callable[[Tensor], Output]:
    """Return the forward pass of the student with compiled features. The last layer is not compiled."""
    features = torch.compile(student.features, dynamic=False)
    return lambda x: student.output(features(x))
