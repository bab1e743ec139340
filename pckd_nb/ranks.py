"""Distributed training: one training in several processes ("ranks"), on one or more machines.

Each rank runs the networks on its part of the batch. The outputs are then gathered with their gradients, so that each
rank has all of them and computes the loss of the whole batch. Difficulty, contrast and the BatchNorm of the projector
are therefore the same as in one process, and `losses`, `preview` and `methods` need no code for distributed training.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from .launcher import is_first_rank as is_first_rank
from .launcher import launched_processes as launched_processes
from .launcher import requested_processes as requested_processes
from .models import Output

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # takes seconds to import

T = TypeVar("T")

# Fabric's all_gather with gradients calls a deprecated function. Its replacement in torch 2.14 is still private.
warnings.filterwarnings("ignore", message=r"torch\.distributed\.nn\.functional\.all_gather is deprecated")

STEPS_BETWEEN_CHECKS = 16  # communication makes a GPU wait for the other ranks


def synchronise_gradients(module: nn.Module, fabric: "Fabric", unused_parameters: bool) -> nn.Module:
    """Return a module whose gradients are the same on all ranks.

    Parameters
    ----------
    module : nn.Module
    fabric : Fabric
    unused_parameters : bool
        Whether a step may leave parameters without a gradient.

    Returns
    -------
    nn.Module
        `module` in a DistributedDataParallel. With one rank, `module` itself.
    """
    if fabric.world_size == 1:
        return module
    device_ids = [fabric.device] if fabric.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=device_ids, find_unused_parameters=unused_parameters)


def local_part(index: Tensor, fabric: "Fabric") -> Tensor:
    """Return the part of a batch that belongs to this rank.

    Parameters
    ----------
    index : Tensor of shape (B,)
        Positions of the images of the whole batch.
    fabric : Fabric

    Returns
    -------
    Tensor of shape (b,)
        Consecutive entries. The sizes b of the ranks differ by at most 1.
    """
    return index.tensor_split(fabric.world_size)[fabric.global_rank]


def gather_rows(rows: Tensor, count: int, fabric: "Fabric") -> Tensor:
    """Gather the rows of all ranks, so that each rank has those of the whole batch.

    In the backward pass, the gradient of each row is summed over the ranks, and goes to the rank that computed the row.
    DistributedDataParallel then averages the gradients of the weights over the ranks. So a loss that each rank computes
    from all rows counts once.

    Parameters
    ----------
    rows : Tensor of shape (V·b, …)
        Rows of this rank, with V views of its b images: the first view of all images, then the second, and so on.
    count : int
        Number of images B in the whole batch.
    fabric : Fabric

    Returns
    -------
    Tensor of shape (V·B, …)
        In the same order.
    """
    if fabric.world_size == 1:
        return rows
    sizes = [len(piece) for piece in torch.arange(count).tensor_split(fabric.world_size)]
    rows = rows.unflatten(0, (-1, sizes[fabric.global_rank]))
    padding = [0, 0] * (rows.ndim - 2) + [0, sizes[0] - rows.shape[1]]  # all_gather needs equal sizes
    gathered = fabric.all_gather(F.pad(rows, padding), sync_grads=rows.requires_grad)
    return torch.cat([piece[:, :size] for piece, size in zip(gathered, sizes, strict=True)], dim=1).flatten(0, 1)


def gather(output: Output, count: int, fabric: "Fabric") -> Output:
    """Gather the outputs of all ranks for a batch of `count` images. Centers and bias are the same in all ranks."""
    return output._replace(
        features=gather_rows(output.features, count, fabric),
        logits=gather_rows(output.logits, count, fabric),
        maps=tuple(gather_rows(rows, count, fabric) for rows in output.maps),
    )


def run_on_first_rank(fabric: "Fabric", action: Callable[[], T]) -> T:
    """Call a function in rank 0 only, and return its result in all ranks.

    If it raises an exception, all ranks raise the same exception.

    Parameters
    ----------
    fabric : Fabric
    action : callable

    Returns
    -------
    object
        The result of `action()`.
    """
    if fabric.world_size == 1:
        return action()
    answer: tuple[T | None, Exception | None] = (None, None)
    if fabric.is_global_zero:
        try:
            answer = action(), None
        except Exception as error:
            answer = None, error
    result, failure = fabric.broadcast(answer)
    if failure is not None:
        raise failure
    return cast(T, result)


def check_ranks_have_same_settings(fabric: "Fabric", settings: dict[str, object]) -> None:
    """Check that all processes have the same settings.

    Parameters
    ----------
    fabric : Fabric
    settings : dict
        The settings of this process as in run.json. "hardware" may differ.

    Raises
    ------
    ValueError
        In all processes, if the settings of one of them differ.
    """
    if fabric.world_size == 1:
        return
    first = fabric.broadcast(settings)
    different = next((name for name in settings if name != "hardware" and settings[name] != first.get(name)), "")
    found = fabric.all_reduce(torch.tensor(float(bool(different)), device=fabric.device), reduce_op="max")
    if cast(Tensor, found) > 0:
        where = f": {different} is not that of rank 0" if different else ""
        raise ValueError(f"the processes have different settings{where}; start all of them with the same settings")


def any_rank(flag: bool, step: int, fabric: "Fabric") -> bool:
    """Return whether `flag` is True in any rank.

    The ranks communicate every `STEPS_BETWEEN_CHECKS` steps only. In other steps the answer is False.
    """
    if fabric.world_size == 1:
        return flag
    if step % STEPS_BETWEEN_CHECKS:
        return False
    any_flag = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="max")
    return bool(cast(Tensor, any_flag) > 0)


def share_buffers(model: nn.Module, fabric: "Fabric") -> None:
    """Replace the buffers of all ranks, such as running means of BatchNorm, with those of rank 0."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def is_lost_rank(error: Exception) -> bool:
    """Return whether the cause of an error is that another rank has ended."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    words = "gloo", "nccl", "connection", "socket"
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)
