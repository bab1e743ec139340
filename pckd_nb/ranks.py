"""One training in several processes, "ranks", on one machine or many.

Every rank runs the networks on its part of a batch. Then all of them get what all said, gathered so that gradients
find their way back, and each computes the loss of the whole batch: difficulty, contrast and the projector's BatchNorm
are those of one process, and nothing in `losses`, `preview` and `methods` knows of ranks.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from .launcher import asked as asked
from .launcher import is_first as is_first
from .launcher import started as started
from .models import Output

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # takes seconds to load

T = TypeVar("T")

# Fabric's gathering with gradients calls it in torch 2.14; what is to come in its place is private still.
warnings.filterwarnings("ignore", message=r"torch\.distributed\.nn\.functional\.all_gather is deprecated")

STEPS_BETWEEN_QUESTIONS = 16  # to ask the other ranks makes a GPU wait for them


def part(index: Tensor, fabric: "Fabric") -> Tensor:
    """This rank's part of a batch. The parts of the ranks, one after the other, are the batch; their sizes differ by
    at most one."""
    return index.tensor_split(fabric.world_size)[fabric.global_rank]


def gather_rows(rows: Tensor, count: int, fabric: "Fabric") -> Tensor:
    """What all ranks have for a batch of `count` images: (V·b, …), view-major as everywhere, becomes (V·count, …).

    Gradients flow back to the rank whose rows they are of, summed over the ranks. With the mean that
    DistributedDataParallel takes of all gradients, a loss that every rank computes of all rows counts once.
    """
    if fabric.world_size == 1:
        return rows
    sizes = [len(piece) for piece in torch.arange(count).tensor_split(fabric.world_size)]
    rows = rows.unflatten(0, (-1, sizes[fabric.global_rank]))
    padding = [0, 0] * (rows.ndim - 2) + [0, sizes[0] - rows.shape[1]]  # equal sizes are what can be gathered
    gathered = fabric.all_gather(F.pad(rows, padding), sync_grads=rows.requires_grad)
    return torch.cat([piece[:, :size] for piece, size in zip(gathered, sizes, strict=True)], dim=1).flatten(0, 1)


def gather(output: Output, count: int, fabric: "Fabric") -> Output:
    """What the networks of all ranks said of a batch of `count` images. Centers and bias are the same everywhere."""
    return output._replace(
        features=gather_rows(output.features, count, fabric),
        logits=gather_rows(output.logits, count, fabric),
        maps=tuple(gather_rows(rows, count, fabric) for rows in output.maps),
    )


def by_first(fabric: "Fabric", action: Callable[[], T]) -> T:
    """Let the first rank do what one process must do for all, and tell the others what came of it: where it fails,
    all raise its error."""
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


def check_one_job(fabric: "Fabric", about: dict[str, object]) -> None:
    """Raises ValueError, in every process, unless all of them were given the same training: `about`, what run.json
    says of it, is compared with the first one's, but for the hardware."""
    if fabric.world_size == 1:
        return
    first = fabric.broadcast(about)
    differ = next((name for name in about if name != "hardware" and about[name] != first.get(name)), "")
    found = fabric.all_reduce(torch.tensor(float(bool(differ)), device=fabric.device), reduce_op="max")
    if cast(Tensor, found) > 0:
        what = f", of another {differ} than the first one's" if differ else ""
        raise ValueError(f"the processes were not started for one training{what}: give all of them the same settings")


def any_rank(flag: bool, step: int, fabric: "Fabric") -> bool:
    """Whether a rank has raised its flag, asked now and then, in the same step by all."""
    if fabric.world_size == 1:
        return flag
    if step % STEPS_BETWEEN_QUESTIONS:
        return False
    raised = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="max")
    return bool(cast(Tensor, raised) > 0)


def share_buffers(model: nn.Module, fabric: "Fabric") -> None:
    """Let all ranks have the first one's buffers: BatchNorm's running means, where every rank has kept its own."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def lost(error: Exception) -> bool:
    """Whether `error` says that another rank is gone."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    signs = "gloo", "nccl", "connection", "socket"
    return isinstance(error, distributed.DistError) or any(sign in str(error).lower() for sign in signs)
