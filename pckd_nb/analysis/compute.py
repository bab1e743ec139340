"""The compute of a training: floating-point operations of its networks."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..models import count_flops, count_flops_by_name
from ..runs import Run, create_network, is_own_network


def training_flops(run: Run) -> int:
    r"""Return how many floating-point operations student and teacher need for one training run.

    .. math:: \text{epochs} \cdot \text{images} \cdot \text{views} \cdot (3 F_s + F_t)

    F_s and F_t are the operations of one forward pass of the student and of the teacher for one image. A backward pass
    needs about twice as many operations as a forward pass. So the student counts three times. These are not counted:
    the method's heads and losses, its stages before the first epoch, the augmentation, and the training of the teacher.

    The seconds of a run are a worse measure. They depend on the machine, and on whether teacher outputs were cached.

    Parameters
    ----------
    run : Run

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If a network was not made by `create_model`.
    """
    settings, size = run.settings, run.settings["data"]["image_size"]
    images = len(run.history) * settings["data"]["train_images"] * settings["method"]["views"]
    student, teacher = (forward_flops(network, size) for network in (settings["model"], settings["teacher"]))
    return total_flops(images, student, teacher)


def total_flops(images: int, student: int, teacher: int) -> int:
    """Return the operations of a training, see `training_flops`.

    Parameters
    ----------
    images : int
        Number of images, with all views, in all epochs.
    student, teacher : int
        Operations of one forward pass for one image. `teacher` is 0 if there is none.

    Returns
    -------
    int
    """
    return images * (3 * student + teacher)


def teraflops(run: Run) -> float:
    """Return `training_flops` in units of 10¹² operations.

    Parameters
    ----------
    run : Run

    Returns
    -------
    float
        NaN if a network was not made by `create_model`.
    """
    try:
        return training_flops(run) / 1e12
    except ValueError:
        return float("nan")


def forward_flops(network: Mapping[str, Any] | None, size: Sequence[int]) -> int:
    """Return how many floating-point operations one forward pass of a network needs for one image.

    Parameters
    ----------
    network : dict or None
        The entry "model" or "teacher" of a run.json. None means no network.
    size : (int, int)
        Height and width of the images.

    Returns
    -------
    int
        A multiplication and an addition count as two operations.

    Raises
    ------
    ValueError
        If the network was not made by `create_model`.
    """
    if network is None:
        return 0
    if is_own_network(network["name"]):
        raise ValueError(
            "cannot count the operations of a network of your own, only those of networks made by `create_model`"
        )
    shape = network["in_channels"], *size
    if "projector" in network:
        return count_flops(create_network(network), shape)
    return count_flops_by_name(network["name"], network["num_classes"], shape)
